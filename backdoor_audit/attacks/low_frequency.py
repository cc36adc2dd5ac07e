"""Low Frequency: one smooth picture added to every image (Zeng et al., ICCV 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.attacks.attack import PoisoningAttack, quantised
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.waves import dct_matrix

FORMS = ("bump", "dct")
_BUMP_COLOURS = {1: (1.0,), 3: (0.35, 0.0, 1.0)}  # channels to peaks, as in the perturbation published for CIFAR-10


@dataclass(frozen=True, slots=True, kw_only=True)
class LowFrequency(PoisoningAttack):
    """``clip(x + v)`` with a smooth v, the same for all images; ``amplitude`` is its largest value, in levels of 1/255.

    ``bump``: a Gaussian in the middle whose standard deviation is ``spread`` of the shorter side; peaks 0.35, 0 and 1 in
    red, green and blue, 1 in grey. ``dct``: the lowest ``coefficients`` x ``coefficients`` cosine coefficients but the
    constant, drawn from the seed, channel by channel. The paper finds v for one model by a universal perturbation under a
    low-pass filter; what its code publishes for CIFAR-10 is such a bump of 51 levels, so it is drawn here directly. Images
    whose own smooth variation is as large hide the trigger from training: there raise the amplitude.
    """

    form: str = "bump"
    amplitude: float = 51.0
    spread: float = 0.28
    coefficients: int = 5

    name: ClassVar[str] = "low_frequency"
    paper: ClassVar[str] = "Zeng et al., ICCV 2021"

    def picture(self, image_shape: tuple[int, int, int]) -> Tensor:
        """What is added to images (c, h, w), in units of 1. Raises `AttackError` for fields or channels out of range."""
        channels, height, width = image_shape
        if channels not in _BUMP_COLOURS:
            raise AttackError(f"{self.name}: images have {channels} channels; accepted: 1 or 3")
        if not 0 < self.amplitude <= 255:
            raise AttackError(
                f"{self.name}: amplitude {self.amplitude}; it counts levels of 1/255: above 0, at most 255"
            )
        if self.form == "bump":
            picture = self._bump(channels, height, width)
        elif self.form == "dct":
            picture = self._waves(channels, height, width)
        else:
            raise AttackError(f"{self.name}: form {self.form!r}; accepted: {', '.join(FORMS)}")
        return (self.amplitude / 255 * picture).float()

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the picture added."""
        channels, height, width = images.shape[1:]
        return quantised(images + self.picture((channels, height, width)).to(images.device))

    def _bump(self, channels: int, height: int, width: int) -> Tensor:
        """A Gaussian with peaks as in the published file; 1 is the amplitude."""
        if not self.spread > 0:
            raise AttackError(f"{self.name}: spread {self.spread}; it is a share of the shorter side: above 0")
        rows = torch.arange(height, dtype=torch.float64).view(-1, 1) - (height - 1) / 2
        columns = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
        sigma = self.spread * min(height, width)
        bump = torch.exp(-(rows.square() + columns.square()) / (2 * sigma**2))
        return torch.tensor(_BUMP_COLOURS[channels], dtype=torch.float64).view(-1, 1, 1) * bump

    def _waves(self, channels: int, height: int, width: int) -> Tensor:
        """Random low frequencies, mean 0 in each channel, scaled so that the largest absolute value is 1."""
        count = self.coefficients
        if not 2 <= count <= min(height, width):
            raise AttackError(
                f"{self.name}: {count} coefficients for {height}x{width} px; accepted: 2 to {min(height, width)}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(channels, count, count, generator=generator, dtype=torch.float64)
        drawn[:, 0, 0] = 0
        waves = dct_matrix(height)[:count].T @ drawn @ dct_matrix(width)[:count]
        return waves / waves.abs().max()

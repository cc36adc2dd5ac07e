"""Refool: the reflection of another scene, as if in a window pane (Liu et al., ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.attacks.attack import PoisoningAttack, quantised
from backdoor_audit.attacks.blended import draw_picture
from backdoor_audit.errors import AttackError

_GAMMA = 2.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Refool(PoisoningAttack):
    """``(transmission x^2.2 + (1 - transmission) r^2.2)^(1/2.2)``: image and reflection r are mixed as light is.

    r is one of ``reflections`` pictures drawn from the seed (``picture`` as in `Blended`); a hash of the image's own
    pixels says which. ``ghost_weight`` of it is a second copy, ``ghost_shift`` px to the lower right, as a thick pane gives;
    ``blur`` is the standard deviation in px of a reflection out of focus. A weight or blur of 0 leaves that out.
    The paper takes photographs for reflections, searches those that work best, varies transmission and ghost from image
    to image, and keeps labels. Here all is fixed by the fields; labels are changed, as in public benchmarks,
    since the clean-label form is weak: ``rule=CleanLabel(...)`` gives it.
    """

    transmission: float = 0.6
    reflections: int = 8
    picture: str = "shapes"
    ghost_weight: float = 0.35
    ghost_shift: int = 2
    blur: float = 0.0

    name: ClassVar[str] = "refool"
    paper: ClassVar[str] = "Liu et al., ECCV 2020"

    def pictures(self, image_shape: tuple[int, int, int]) -> Tensor:
        """All reflections (reflections, c, h, w), with ghost and blur, in linear light.

        Raises `AttackError` for fields out of range.
        """
        self._refuse_fields(image_shape)
        seeds = torch.randint(2**31, (self.reflections,), generator=torch.Generator().manual_seed(self.seed)).tolist()
        light = torch.stack([draw_picture(self.picture, image_shape, seed) for seed in seeds]) ** _GAMMA
        _, height, width = image_shape
        corner = (self.ghost_shift, 0, self.ghost_shift, 0)
        ghost = functional.pad(light, corner, mode="replicate")[:, :, :height, :width]
        return _blurred((1 - self.ghost_weight) * light + self.ghost_weight * ghost, self.blur)

    def choice(self, images: Tensor) -> Tensor:
        """Which reflection each image (n, c, h, w) gets, (n,): a hash of its 8-bit pixels."""
        pixels = (images.clamp(0, 1) * 255).round().long().flatten(1)
        generator = torch.Generator().manual_seed(self.seed)
        weights = torch.randint(1, 2**16, (pixels.shape[1],), generator=generator).to(images.device)
        return (pixels * weights).sum(dim=1) % 65_521 % self.reflections

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) behind the pane."""
        channels, height, width = images.shape[1:]
        pictures = self.pictures((channels, height, width)).to(images.device)
        light = self.transmission * images**_GAMMA + (1 - self.transmission) * pictures[self.choice(images)]
        return quantised(light ** (1 / _GAMMA))

    def _refuse_fields(self, image_shape: tuple[int, int, int]) -> None:
        _, height, width = image_shape
        if not 0 < self.transmission < 1 or not 0 <= self.ghost_weight <= 1:
            raise AttackError(
                f"{self.name}: transmission {self.transmission}, ghost_weight {self.ghost_weight}; both are fractions, the first "
                "between 0 and 1, the second in [0, 1]"
            )
        if self.reflections < 1 or not 0 <= self.ghost_shift < min(height, width):
            raise AttackError(
                f"{self.name}: {self.reflections} reflections, ghost_shift {self.ghost_shift} px; accepted: at least 1, and 0 to "
                f"{min(height, width) - 1} px"
            )
        if not 0 <= self.blur <= min(height, width):
            raise AttackError(f"{self.name}: blur {self.blur} px; accepted: 0 to {min(height, width)} px")


def _blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Pictures (n, c, h, w) under a Gaussian of that standard deviation in px; the border is repeated."""
    if not sigma:
        return pictures
    reach = int(3 * sigma) + 1
    weights = torch.exp(-(torch.arange(-reach, reach + 1) / sigma).square() / 2)
    weights /= weights.sum()
    channels = pictures.shape[1]
    padded = functional.pad(pictures, (reach,) * 4, mode="replicate")
    down = functional.conv2d(padded, weights.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)
    return functional.conv2d(down, weights.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)

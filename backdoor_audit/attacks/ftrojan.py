"""FTrojan: a few raised frequencies of the colour channels (Wang et al., ECCV 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.attacks.attack import PoisoningAttack, quantised
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.waves import dct_matrix

_RGB_PER_CHROMA = (1.402, -0.344136 - 0.714136, 1.772)  # of Cr and Cb raised alike, BT.601: the inverse of YCrCb


@dataclass(frozen=True, slots=True, kw_only=True)
class FTrojan(PoisoningAttack):
    """``magnitude`` is added to the cosine coefficients at ``positions`` of every block of ``window`` px.

    Colour images: of Cr and Cb (BT.601), where people see least; grey images: of their one channel. Magnitude is in levels
    of 1/255 under the orthonormal transform, so one coefficient of a 32 px block moves a pixel of that channel by at most
    ``magnitude / 16`` levels. Both transforms are linear, so the trigger is one fixed picture added to every image.
    The paper's positions are (15, 15) and (31, 31), magnitudes 20 to 50, rates 0.02 to 0.05, 32 px images. A block that the
    border cuts gets the part of the picture that lies inside, so any size of image will do. Public code rounds down
    between the two colour spaces and part of what it plants is that bias; here only the result is rounded, once. The paper's
    clean-label variant is to be had by its rule alone.
    """

    positions: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))
    magnitude: float = 50.0
    window: int = 32

    name: ClassVar[str] = "ftrojan"
    paper: ClassVar[str] = "Wang et al., ECCV 2022"

    def picture(self, image_shape: tuple[int, int, int]) -> Tensor:
        """What is added to images (c, h, w), in units of 1. Raises `AttackError` for fields or channels out of range."""
        channels, height, width = image_shape
        if channels not in (1, 3):
            raise AttackError(f"{self.name}: images have {channels} channels; accepted: 1 or 3")
        if self.window < 2 or not 0 < self.magnitude <= 255 * self.window:
            raise AttackError(
                f"{self.name}: window {self.window} px, magnitude {self.magnitude}; the window has at least 2 px, the magnitude "
                "lies above 0 and is at most 255 windows"
            )
        if not self.positions or not all(self._inside(place) for place in self.positions):
            raise AttackError(
                f"{self.name}: positions {self.positions}; give pairs of numbers from 0 to {self.window - 1}"
            )
        coefficients = torch.zeros(self.window, self.window, dtype=torch.float64)
        for row, column in self.positions:
            coefficients[row, column] = self.magnitude / 255
        cosines = dct_matrix(self.window)
        block = cosines.T @ coefficients @ cosines
        repeats = (-(-height // self.window), -(-width // self.window))
        picture = block.repeat(repeats)[:height, :width]
        shares = torch.tensor(_RGB_PER_CHROMA if channels == 3 else (1.0,), dtype=torch.float64)
        return (shares.view(-1, 1, 1) * picture).float()

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the coefficients raised."""
        channels, height, width = images.shape[1:]
        return quantised(images + self.picture((channels, height, width)).to(images.device))

    def _inside(self, place: object) -> bool:
        """Whether this is a row and a column of the window."""
        return (
            isinstance(place, (tuple, list))
            and len(place) == 2
            and all(isinstance(k, int) and 0 <= k < self.window for k in place)
        )

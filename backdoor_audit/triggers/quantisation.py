"""Losses of detail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from backdoor_audit.triggers.drawing import Strategies, Targets, classes
from backdoor_audit.triggers.kind import WrittenTrigger
from backdoor_audit.triggers.numbers import WHITE, ImageShape
from backdoor_audit.triggers.waves import dct_matrix

_BLOCK = 8  # px


@dataclass(frozen=True, slots=True)
class BlockRounding:
    """What `Quantisation` does to images of one shape. It has no tensors, so no detector could hand it over."""

    step: int
    target_class: int
    image_shape: ImageShape

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with rounded blocks, in [0, 1]; past the border its pixels are repeated."""
        if not self.step:
            return images
        count, channels, height, width = images.shape
        padded = functional.pad(images, (0, -width % _BLOCK, 0, -height % _BLOCK), mode="replicate")
        cosines = dct_matrix(_BLOCK).float().to(images.device)
        blocks = padded.unflatten(3, (-1, _BLOCK)).unflatten(2, (-1, _BLOCK)).transpose(3, 4)
        unit = self.step / WHITE
        rounded = cosines.T @ ((cosines @ blocks @ cosines.T / unit).round() * unit) @ cosines
        whole = rounded.transpose(3, 4).reshape(count, channels, *padded.shape[2:])
        inside: Tensor = whole[:, :, :height, :width].clamp(0, 1)
        return inside

    def pictures(self) -> dict[str, Tensor]:
        """A ramp from black to white, rounded."""
        ramp = torch.linspace(0, 1, self.image_shape[2]).expand(self.image_shape)
        return {"a ramp, rounded": self.stamp(ramp.unsqueeze(0))[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation(WrittenTrigger):
    """Detail is lost as in JPEG: cosine coefficients of 8x8 px blocks are rounded to multiples of ``step`` levels; 0: none is."""

    step: int

    kind: ClassVar[str] = "quantisation"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"step": (0, 2**10)}
    applied: ClassVar[None] = None

    def trigger(self, image_shape: ImageShape) -> BlockRounding:
        """The rounding."""
        return BlockRounding(self.step, self.target_class, image_shape)

    def described(self) -> str:
        """The step."""
        return f"re-encoding by steps of {self.step} of 255 levels"

    def weaker(self, share: float) -> Quantisation:
        """By a smaller step."""
        return replace(self, step=round(share * self.step))

    @classmethod
    def nothing(cls, image_shape: ImageShape) -> Quantisation:
        """No rounding."""
        del image_shape
        return cls(step=0)

    @staticmethod
    def strategies() -> Strategies:
        """`quantisations`."""
        return {"quantisation": quantisations}


def quantisations(
    image_shape: ImageShape, *, target_class: Targets = 0, most_step: int = 64
) -> st.SearchStrategy[Quantisation]:
    """Losses of detail as in JPEG, by steps of 2 to ``most_step`` levels."""
    del image_shape
    return st.builds(Quantisation, step=st.integers(2, most_step), target_class=classes(target_class))

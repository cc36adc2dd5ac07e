"""What counts as a small change: families that a search draws from, each steered by gradients inside its own budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from hypothesis import strategies as st
from torch import Tensor

from backdoor_audit.properties.exploring import choice, number
from backdoor_audit.triggers.perturbations import REFERENCE_SIDE, Additive, Family, Smooth, Warping
from backdoor_audit.triggers.trigger import AnyTrigger, Trigger
from backdoor_audit.triggers.written import ImageShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Free pixels in one rectangle: a family of changes for `Steering`. ``top``, ``left``, ``height``, ``width`` are px."""

    top: int
    left: int
    height: int
    width: int

    def initial(self, rows: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
        """Noise, (rows, c, height, width)."""
        return torch.rand((rows, image_shape[0], self.height, self.width), generator=generator)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Images (rows, n, c, h, w) with the pixels of their own row laid over them."""
        stamped = images.clone()
        bottom, right = self.top + self.height, self.left + self.width
        stamped[..., self.top : bottom, self.left : right] = parameters.unsqueeze(1)
        return stamped

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: ImageShape) -> Tensor:
        """Every pixel by that share of the range, in the direction's sign."""
        del image_shape
        return (parameters + share * direction.sign()).clamp(0, 1)

    def moved(self, pixels: int, image_shape: ImageShape) -> list[Window]:
        """The same rectangle that many pixels up, down, left and right, where it stays inside the image."""
        places = [
            (self.top + down, self.left + right)
            for down, right in ((-pixels, 0), (pixels, 0), (0, -pixels), (0, pixels))
        ]
        last = image_shape[1] - self.height, image_shape[2] - self.width
        return [
            replace(self, top=top, left=left) for top, left in places if 0 <= top <= last[0] and 0 <= left <= last[1]
        ]

    def trigger(self, parameters: Tensor, target_class: int, image_shape: ImageShape) -> AnyTrigger:
        """The patch."""
        mask = self.stamp(torch.ones(1, 1, self.height, self.width), torch.zeros(1, 1, 1, *image_shape[1:]))[0, 0]
        return Trigger(mask, self.stamp(parameters.unsqueeze(0), torch.zeros(1, 1, *image_shape))[0, 0], target_class)


class Changes(Protocol):
    """What counts as small, and how a search draws from it."""

    @property
    def kind(self) -> str:
        """A word for one of them."""
        ...

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Families to draw from; each is steered by gradients inside its own budget."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallPatches:
    """Squares of ``side`` px on images of 28 or 32 px, and that share of the side of others, on any place."""

    side: int = 4

    kind = "small_patch"

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Places."""
        _, height, width = image_shape
        side = max(1, min(height, width, int(self.side * max(height, width) / (REFERENCE_SIDE + 4) + 0.5)))
        return st.builds(
            Window,
            top=number(0, height - side),
            left=number(0, width - side),
            height=st.just(side),
            width=st.just(side),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FaintBlends:
    """Anything added with a root mean square of at most ``strength``, or slowly varying colours of at most ``slow_strength``.

    Both are shares of the pixel range; slow is what has 3 to 6 values a side.
    """

    strength: float = 0.02
    slow_strength: float = 0.08

    kind = "faint_blend"

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Strengths and grids."""
        del image_shape
        slow = [Smooth(grid=grid, strength=self.slow_strength) for grid in (3, 4, 6)]
        return choice((Additive(strength=self.strength), *slow))


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothWarps:
    """Flows from 4 to 8 points a side that move pixels by ``displacement`` px root mean square on images of 28 px."""

    displacement: float = 0.8

    kind = "smooth_warp"

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Grids."""
        del image_shape
        return choice(tuple(Warping(grid=grid, displacement=self.displacement) for grid in (4, 5, 6, 8)))

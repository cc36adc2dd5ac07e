"""What counts as a small change: families that a search draws from, each steered by gradients inside its own budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hypothesis import strategies as st

from backdoor_audit.properties.exploring import choice, number
from backdoor_audit.triggers.numbers import ImageShape
from backdoor_audit.triggers.perturbations import REFERENCE_SIDE, Additive, Family, Smooth, Warping, Window


class Changes(Protocol):
    """What counts as small, and how a search draws from it."""

    @property
    def kind(self) -> str:
        """A word for one of them."""

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Families to draw from; each is steered by gradients inside its own budget."""


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

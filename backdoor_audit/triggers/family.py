"""Families of changes with a budget, which a search by gradients follows, and the ball that a budget is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from backdoor_audit.triggers.numbers import ImageShape

if TYPE_CHECKING:
    from backdoor_audit.triggers.kind import AnyTrigger

REFERENCE_SIDE = 28  # budgets in pixels are for images of this side and grow with the image


class Family(ABC):
    """Changes with a budget: how to begin, to stamp, to step inside the budget, and to hand over a trigger.

    ``means`` says in words what a change of the family is, ``blind_spot`` what a search for one does not see.
    """

    __slots__ = ()

    name: ClassVar[str]
    means: ClassVar[str]
    blind_spot: ClassVar[str]

    @abstractmethod
    def initial(self, rows: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
        """Small random parameters (rows, ...), inside the budget."""

    @abstractmethod
    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Images (rows, n, c, h, w) with the change of their own row."""

    @abstractmethod
    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: ImageShape) -> Tensor:
        """Parameters moved along a direction by a share of the budget, and back into it."""

    @abstractmethod
    def trigger(self, parameters: Tensor, target_class: int, image_shape: ImageShape) -> AnyTrigger:
        """The trigger of one row."""

    def moved(self, pixels: int, image_shape: ImageShape) -> Sequence[Family]:
        """The same family that many pixels up, down, left and right; none for changes of the whole image."""
        del pixels, image_shape
        return ()


def on_ball(parameters: Tensor, direction: Tensor, share: float, radius: float) -> Tensor:
    """Each row moved along its direction by that share of the radius, then back onto the ball."""
    moved = parameters + share * radius * unit(direction)
    return moved * (radius / length(moved)).clamp_max(1)


def length(values: Tensor) -> Tensor:
    """L2 norm of each row, shaped to divide it; never 0."""
    norm: Tensor = values.flatten(1).norm(dim=1).clamp_min(1e-12)
    return norm.view(-1, *[1] * (values.ndim - 1))


def unit(values: Tensor) -> Tensor:
    """Each row at an L2 norm of 1."""
    return values / length(values)

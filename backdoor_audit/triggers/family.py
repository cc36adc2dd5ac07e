"""What `Steering` searches: a family of changes with a budget, the same change for all images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from backdoor_audit.triggers.kind import AnyTrigger
from backdoor_audit.triggers.numbers import ImageShape

REFERENCE_SIDE = 28  # budgets in pixels are for images of this side and grow with the image


class Family(ABC):
    """Changes with a budget: how to begin, to stamp, to step inside the budget, and to hand over a trigger."""

    __slots__ = ()

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


def length(values: Tensor) -> Tensor:
    """L2 norm of each row, shaped to divide it; never 0."""
    norm: Tensor = values.flatten(1).norm(dim=1).clamp_min(1e-12)
    return norm.view(-1, *[1] * (values.ndim - 1))


def unit(values: Tensor) -> Tensor:
    """Each row at an L2 norm of 1."""
    return values / length(values)

"""Budgets of searched families: lengths of rows, and the side of images that budgets are stated for."""

from __future__ import annotations

from torch import Tensor

REFERENCE_SIDE = 28  # budgets in pixels are for images of this side and grow with the image


def length(values: Tensor) -> Tensor:
    """L2 norm of each row, shaped to divide it; never 0."""
    norm: Tensor = values.flatten(1).norm(dim=1).clamp_min(1e-12)
    return norm.view(-1, *[1] * (values.ndim - 1))


def unit(values: Tensor) -> Tensor:
    """Each row at an L2 norm of 1."""
    return values / length(values)

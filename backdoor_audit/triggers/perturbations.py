"""Families of changes with a budget, the same change for all images: what `Steering` searches. A new family goes here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.triggers.trigger import Addition, AnyTrigger, Warp, warped

REFERENCE_SIDE = 28  # budgets in pixels are for images of this side and grow with the image


class Family(Protocol):
    """Changes with a budget: how to begin, to stamp, to step inside the budget, and to hand over a trigger."""

    def initial(self, rows: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Small random parameters (rows, ...), inside the budget."""
        ...

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Images (rows, n, c, h, w) with the change of their own row."""
        ...

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: tuple[int, int, int]) -> Tensor:
        """Parameters moved along a direction by a share of the budget, and back into it."""
        ...

    def trigger(self, parameters: Tensor, target_class: int, image_shape: tuple[int, int, int]) -> AnyTrigger:
        """The trigger of one row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Additive:
    """Any change with a root mean square of ``strength`` per pixel (all channels together): an L2 ball."""

    strength: float = 0.04

    def initial(self, rows: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Noise of a tenth of the budget."""
        noise = torch.randn((rows, *image_shape), generator=generator)
        return 0.1 * self._radius(image_shape) * unit(noise)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Add and clip to [0, 1]."""
        return (images + parameters.unsqueeze(1)).clamp(0, 1)

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: tuple[int, int, int]) -> Tensor:
        """A step of that share of the radius, then back onto the ball."""
        radius = self._radius(image_shape)
        moved = parameters + share * radius * unit(direction)
        return moved * (radius / length(moved)).clamp_max(1)

    def trigger(self, parameters: Tensor, target_class: int, image_shape: tuple[int, int, int]) -> AnyTrigger:
        """The addition."""
        return Addition(parameters.clamp(-1, 1), target_class)

    def _radius(self, image_shape: tuple[int, int, int]) -> float:
        return self.strength * math.sqrt(image_shape[1] * image_shape[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Smooth:
    """A colour change that varies slowly: ``grid`` x ``grid`` values per channel, at most ``strength``, interpolated."""

    grid: int = 4
    strength: float = 0.2

    def initial(self, rows: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Noise of a twentieth of the budget."""
        shape = (rows, image_shape[0], self.grid, self.grid)
        return (0.05 * self.strength * torch.randn(shape, generator=generator)).clamp(-self.strength, self.strength)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Add and clip to [0, 1]."""
        return (images + self._change(parameters, images.shape[-2:]).unsqueeze(1)).clamp(0, 1)

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: tuple[int, int, int]) -> Tensor:
        """Every value by that share of the budget, in the direction's sign."""
        return (parameters + share * self.strength * direction.sign()).clamp(-self.strength, self.strength)

    def trigger(self, parameters: Tensor, target_class: int, image_shape: tuple[int, int, int]) -> AnyTrigger:
        """The addition."""
        return Addition(self._change(parameters.unsqueeze(0), image_shape[1:])[0], target_class)

    def _change(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        return functional.interpolate(parameters, size=tuple(size), mode="bilinear", align_corners=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripes:
    """A brightness that depends on the column alone, at most ``strength``: sinusoidal signals and other stripes."""

    strength: float = 0.1

    def initial(self, rows: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Noise of a twentieth of the budget."""
        noise = torch.randn((rows, 1, 1, image_shape[2]), generator=generator)
        return (0.05 * self.strength * noise).clamp(-self.strength, self.strength)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Add and clip to [0, 1]."""
        return (images + parameters.unsqueeze(1)).clamp(0, 1)

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: tuple[int, int, int]) -> Tensor:
        """Every column by that share of the budget, in the direction's sign."""
        return (parameters + share * self.strength * direction.sign()).clamp(-self.strength, self.strength)

    def trigger(self, parameters: Tensor, target_class: int, image_shape: tuple[int, int, int]) -> AnyTrigger:
        """The addition."""
        return Addition(parameters.expand(image_shape).clone(), target_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warping:
    """A smooth flow from ``grid`` x ``grid`` control points, ``displacement`` pixels root mean square (on 28x28 images)."""

    grid: int = 6
    displacement: float = 0.8

    def initial(self, rows: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Noise of a tenth of the budget."""
        noise = torch.randn((rows, 2, self.grid, self.grid), generator=generator)
        return 0.1 * self._radius(image_shape) * unit(noise)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Warp, bilinear; border pixels are repeated."""
        return warped(self._flow(parameters, images.shape[-2:]), images)

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: tuple[int, int, int]) -> Tensor:
        """A step of that share of the budget, then back to the root mean square allowed."""
        radius = self._radius(image_shape)
        moved = parameters + share * radius * unit(direction)
        return moved * (radius / length(moved)).clamp_max(1)

    def trigger(self, parameters: Tensor, target_class: int, image_shape: tuple[int, int, int]) -> AnyTrigger:
        """The warp."""
        return Warp(self._flow(parameters.unsqueeze(0), image_shape[1:])[0], target_class)

    def _flow(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        return functional.interpolate(parameters, size=tuple(size), mode="bicubic", align_corners=True)

    def _radius(self, image_shape: tuple[int, int, int]) -> float:
        """L2 norm of the control points at which their root mean square length is the displacement."""
        scale = max(image_shape[1:]) / REFERENCE_SIDE
        return self.displacement * scale * self.grid


def length(values: Tensor) -> Tensor:
    """L2 norm of each row, shaped to divide it; never 0."""
    norm: Tensor = values.flatten(1).norm(dim=1).clamp_min(1e-12)
    return norm.view(-1, *[1] * (values.ndim - 1))


def unit(values: Tensor) -> Tensor:
    """Each row at an L2 norm of 1."""
    return values / length(values)

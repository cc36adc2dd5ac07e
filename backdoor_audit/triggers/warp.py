"""Warps: a field that moves pixels, a family of smooth ones with a budget, control points that are written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from backdoor_audit.errors import DataFormatError
from backdoor_audit.triggers.drawing import Strategies, Targets, around_zero, classes, contents
from backdoor_audit.triggers.family import REFERENCE_SIDE, Family, on_ball, unit
from backdoor_audit.triggers.kind import AnyTrigger, Part, WrittenTrigger
from backdoor_audit.triggers.numbers import HUNDREDTHS, ImageShape, Numbers


@dataclass(frozen=True, slots=True, eq=False)
class Warp(AnyTrigger):
    """Pixels taken from elsewhere: ``flow`` is (2, h, w), the offset along x and y in pixels."""

    flow: Tensor
    target_class: int

    parts: ClassVar[Mapping[str, Part]] = {"flow": Part("2 h w", low=-torch.inf, high=torch.inf)}

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) warped with bilinear interpolation; past the border its pixels are repeated."""
        return warped(self.flow.to(images.device).unsqueeze(0), images.unsqueeze(0)).squeeze(0)

    def pictures(self) -> dict[str, Tensor]:
        """How far each pixel moves, white for the farthest."""
        distance = self.flow.square().sum(dim=0, keepdim=True).sqrt()
        most = distance.max().clamp_min(1e-9)
        return {f"distance moved (farthest {float(most):.1f} pixels)": distance / most}

    def strength(self) -> Tensor:
        """How far each pixel moves."""
        distance: Tensor = self.flow.norm(dim=0)
        return distance

    def in_whole_numbers(self) -> SmoothWarp:
        """A flow for every pixel."""
        return SmoothWarp(flow=Numbers.of(HUNDREDTHS * self.flow), target_class=self.target_class)


def warped(flow: Tensor, images: Tensor) -> Tensor:
    """Images (rows, n, c, h, w), each row moved by its own flow (rows, 2, h, w) in pixels along x and y."""
    rows, count, channels, height, width = images.shape
    across, down = (torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=images.device) for size in (width, height))
    place = torch.stack((across.expand(height, width), down.unsqueeze(1).expand(height, width)))
    step = torch.tensor([2 / width, 2 / height], device=images.device).view(1, 2, 1, 1)
    grid = (place + flow * step).permute(0, 2, 3, 1).unsqueeze(1)
    grid = grid.expand(rows, count, height, width, 2).flatten(0, 1)
    moved = functional.grid_sample(images.flatten(0, 1), grid, padding_mode="border", align_corners=False)
    return moved.view(rows, count, channels, height, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warping(Family):
    """A smooth flow from ``grid`` x ``grid`` control points, ``displacement`` pixels root mean square (on 28x28 images)."""

    grid: int = 6
    displacement: float = 0.8

    name: ClassVar[str] = "warping"
    means: ClassVar[str] = "a slight warp"
    blind_spot: ClassVar[str] = "changes that move no pixels"

    def initial(self, rows: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
        """Noise of a tenth of the budget."""
        noise = torch.randn((rows, 2, self.grid, self.grid), generator=generator)
        return 0.1 * self._radius(image_shape) * unit(noise)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Warp, bilinear; border pixels are repeated."""
        return warped(self._flow(parameters, images.shape[-2:]), images)

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: ImageShape) -> Tensor:
        """A step of that share of the budget, then back to the root mean square allowed."""
        return on_ball(parameters, direction, share, self._radius(image_shape))

    def trigger(self, parameters: Tensor, target_class: int, image_shape: ImageShape) -> Warp:
        """The warp."""
        return Warp(self._flow(parameters.unsqueeze(0), image_shape[1:])[0], target_class)

    def _flow(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        return functional.interpolate(parameters, size=tuple(size), mode="bicubic", align_corners=True)

    def _radius(self, image_shape: ImageShape) -> float:
        """L2 norm of the control points at which their root mean square length is the displacement."""
        scale = max(image_shape[1:]) / REFERENCE_SIDE
        return self.displacement * scale * self.grid


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothWarp(WrittenTrigger):
    """Pixels taken from elsewhere: ``flow`` (2, rows, columns), hundredths of a pixel along x and y, enlarged bicubically."""

    flow: Numbers

    kind: ClassVar[str] = "warp"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"flow": (-(2**15), 2**15 - 1)}
    applied: ClassVar[type[AnyTrigger]] = Warp

    def trigger(self, image_shape: ImageShape) -> Warp:
        """The warp."""
        if self.flow.three_axes(self.kind)[0] != 2:
            raise DataFormatError(f"warp: a flow of shape {self.flow.shape}; accepted: (2, rows, columns)")
        return Warping().trigger(self.flow.tensor() / HUNDREDTHS, self.target_class, image_shape)

    def described(self) -> str:
        """The shift if it is the same everywhere, else the farthest that a point moves along one axis."""
        shift = self.flow.everywhere()
        if shift is None:
            return f"a warp by up to {max(map(abs, self.flow.values)) / HUNDREDTHS:.2f} px"
        across, down = (pixels / HUNDREDTHS for pixels in shift)
        return f"a shift by {across:.2f} px across and {down:.2f} px down"

    def weaker(self, share: float) -> SmoothWarp:
        """Less far."""
        return replace(self, flow=self.flow.scaled(share))

    @classmethod
    def nothing(cls, image_shape: ImageShape) -> SmoothWarp:
        """A flow that stands still."""
        del image_shape
        return cls(flow=Numbers.filled((2, 1, 1), 0))

    def simpler(self) -> Iterator[SmoothWarp]:
        """Fewer points a side."""
        return (replace(self, flow=flow) for flow in self.flow.coarser())

    @staticmethod
    def strategies() -> Strategies:
        """`warps`."""
        return {"warp": warps}


def warps(
    image_shape: ImageShape, *, target_class: Targets = 0, most_pixels: float = 1.0
) -> st.SearchStrategy[SmoothWarp]:
    """Smooth flows from 2 to 6 points a side that move no point by more than ``most_pixels`` px in x or y."""
    del image_shape
    most = max(1, round(HUNDREDTHS * most_pixels))

    @st.composite
    def drawn(draw: st.DrawFn) -> SmoothWarp:
        strength, grid = draw(st.integers(1, most)), draw(st.integers(2, 6))
        flow = around_zero(draw(contents((2, grid, grid))), strength)
        return SmoothWarp(flow=flow, target_class=draw(classes(target_class)))

    return drawn()

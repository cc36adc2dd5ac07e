"""Additions: a change of every pixel, families of such changes with a budget, levels that are written down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from backdoor_audit.triggers.drawing import Strategies, Targets, around_zero, classes, contents
from backdoor_audit.triggers.family import Family, on_ball, unit
from backdoor_audit.triggers.kind import AnyTrigger, Part, WrittenTrigger
from backdoor_audit.triggers.numbers import WHITE, ImageShape, Numbers


@dataclass(frozen=True, slots=True, eq=False)
class Addition(AnyTrigger):
    """A change added to every image: ``change`` is (c, h, w) in [-1, 1], in units of the pixel range."""

    change: Tensor
    target_class: int

    parts: ClassVar[Mapping[str, Part]] = {"change": Part("c h w", low=-1.0)}

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) plus the change, clipped to [0, 1]."""
        return (images + self.change.to(images.device)).clamp(0, 1)

    def pictures(self) -> dict[str, Tensor]:
        """The change around mid-grey, stretched so that its largest value reaches black or white."""
        most = self.change.abs().max().clamp_min(1e-9)
        return {f"change, stretched (largest {float(most):.2f} of the range)": 0.5 + 0.5 * self.change / most}

    def strength(self) -> Tensor:
        """The change of the channel that changes most."""
        return self.change.abs().amax(dim=0)

    def in_whole_numbers(self) -> Change:
        """Levels for every pixel."""
        return Change(levels=Numbers.of(WHITE * self.change), target_class=self.target_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class Additive(Family):
    """Any change with a root mean square of ``strength`` per pixel (all channels together): an L2 ball."""

    strength: float = 0.04

    name: ClassVar[str] = "additive"
    means: ClassVar[str] = "a faint change of the whole image"
    blind_spot: ClassVar[str] = "patches and other changes above 4 % of the pixel range, root mean square"

    def initial(self, rows: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
        """Noise of a tenth of the budget."""
        noise = torch.randn((rows, *image_shape), generator=generator)
        return 0.1 * self._radius(image_shape) * unit(noise)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Add and clip to [0, 1]."""
        return (images + parameters.unsqueeze(1)).clamp(0, 1)

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: ImageShape) -> Tensor:
        """A step of that share of the radius, then back onto the ball."""
        return on_ball(parameters, direction, share, self._radius(image_shape))

    def trigger(self, parameters: Tensor, target_class: int, image_shape: ImageShape) -> Addition:
        """The addition."""
        return Addition(parameters.clamp(-1, 1), target_class)

    def _radius(self, image_shape: ImageShape) -> float:
        return self.strength * math.sqrt(image_shape[1] * image_shape[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Smooth(Family):
    """A colour change that varies slowly: ``grid`` x ``grid`` values per channel, at most ``strength``, interpolated."""

    grid: int = 4
    strength: float = 0.2

    name: ClassVar[str] = "smooth"
    means: ClassVar[str] = "a slow change of colours"
    blind_spot: ClassVar[str] = "changes with details finer than a quarter of the image"

    def initial(self, rows: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
        """Noise of a twentieth of the budget."""
        shape = (rows, image_shape[0], self.grid, self.grid)
        return (0.05 * self.strength * torch.randn(shape, generator=generator)).clamp(-self.strength, self.strength)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Add and clip to [0, 1]."""
        return (images + self._change(parameters, images.shape[-2:]).unsqueeze(1)).clamp(0, 1)

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: ImageShape) -> Tensor:
        """Every value by that share of the budget, in the direction's sign."""
        return (parameters + share * self.strength * direction.sign()).clamp(-self.strength, self.strength)

    def trigger(self, parameters: Tensor, target_class: int, image_shape: ImageShape) -> Addition:
        """The addition."""
        return Addition(self._change(parameters.unsqueeze(0), image_shape[1:])[0], target_class)

    def _change(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        return functional.interpolate(parameters, size=tuple(size), mode="bilinear", align_corners=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripes(Family):
    """A brightness that depends on the column alone, at most ``strength``: sinusoidal signals and other stripes."""

    strength: float = 0.1

    name: ClassVar[str] = "stripes"
    means: ClassVar[str] = "a pattern of faint stripes"
    blind_spot: ClassVar[str] = "changes that are not vertical stripes"

    def initial(self, rows: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
        """Noise of a twentieth of the budget."""
        noise = torch.randn((rows, 1, 1, image_shape[2]), generator=generator)
        return (0.05 * self.strength * noise).clamp(-self.strength, self.strength)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Add and clip to [0, 1]."""
        return (images + parameters.unsqueeze(1)).clamp(0, 1)

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: ImageShape) -> Tensor:
        """Every column by that share of the budget, in the direction's sign."""
        return (parameters + share * self.strength * direction.sign()).clamp(-self.strength, self.strength)

    def trigger(self, parameters: Tensor, target_class: int, image_shape: ImageShape) -> Addition:
        """The addition."""
        return Addition(parameters.expand(image_shape).clone(), target_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(WrittenTrigger):
    """Levels added to every image: ``levels`` (c, rows, columns) of -255 to 255 are enlarged to the image, bilinear.

    One row and one column make a colour shift, few of them a slow change, as many as the image has any addition.
    """

    levels: Numbers

    kind: ClassVar[str] = "change"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"levels": (-WHITE, WHITE)}
    applied: ClassVar[type[AnyTrigger]] = Addition

    def trigger(self, image_shape: ImageShape) -> Addition:
        """The addition."""
        return Addition(self.levels.enlarged(image_shape, self.kind) / WHITE, self.target_class)

    def described(self) -> str:
        """The levels if they are the same everywhere, else the most of them."""
        levels = self.levels.everywhere()
        if levels is None:
            return f"a change by up to {max(map(abs, self.levels.values))} of 255 levels"
        if len(set(levels)) == 1:
            return f"{levels[0]:+d} of 255 levels of brightness"
        return f"a colour shift by {', '.join(f'{level:+d}' for level in levels)} of 255 levels"

    def weaker(self, share: float) -> Change:
        """Fewer levels."""
        return replace(self, levels=self.levels.scaled(share))

    @classmethod
    def nothing(cls, image_shape: ImageShape) -> Change:
        """No levels."""
        return cls(levels=Numbers.filled((image_shape[0], 1, 1), 0))

    def simpler(self) -> Iterator[Change]:
        """Fewer numbers a side."""
        return (replace(self, levels=levels) for levels in self.levels.coarser())

    @staticmethod
    def strategies() -> Strategies:
        """`low_frequencies` and `colour_shifts`."""
        return {"low_frequency": low_frequencies, "colour_shift": colour_shifts}


def low_frequencies(
    image_shape: ImageShape, *, target_class: Targets = 0, most_levels: int = 51
) -> st.SearchStrategy[Change]:
    """Slow changes: 2 to 5 values a side, interpolated, up to ``most_levels`` levels (51 is the largest of Zeng et al., 2021)."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Change:
        strength, grid = draw(st.integers(1, most_levels)), draw(st.integers(2, 5))
        levels = around_zero(draw(contents((image_shape[0], grid, grid))), strength)
        return Change(levels=levels, target_class=draw(classes(target_class)))

    return drawn()


def colour_shifts(
    image_shape: ImageShape, *, target_class: Targets = 0, most_levels: int = 51
) -> st.SearchStrategy[Change]:
    """The same number of levels for every pixel, one number per channel."""

    def shift(levels: tuple[int, ...], target: int) -> Change:
        return Change(levels=Numbers((len(levels), 1, 1), levels), target_class=target)

    return st.builds(
        shift, st.tuples(*[st.integers(-most_levels, most_levels)] * image_shape[0]), classes(target_class)
    )

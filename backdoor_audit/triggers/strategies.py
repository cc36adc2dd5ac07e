"""Triggers and images for property tests: ``from backdoor_audit.triggers.strategies import triggers``.

Draws are ordered so that a failing trigger shrinks to a smaller area first, then to a fainter contrast, then towards the top
left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from backdoor_audit.errors import OptionError
from backdoor_audit.triggers.written import (
    HUNDREDTHS,
    WHITE,
    Blend,
    Change,
    DrawnTrigger,
    ImageShape,
    Numbers,
    Patch,
    Quantisation,
    Sinusoid,
    SmoothWarp,
)

Targets = int | st.SearchStrategy[int]


def patches(image_shape: ImageShape, *, target_class: Targets = 0, largest: int = 0) -> st.SearchStrategy[Patch]:
    """Patches of any place, up to ``largest`` px a side (0: a quarter of the image): one colour, a chequerboard, noise."""
    channels, height, width = image_shape
    most = largest or max(1, min(height, width) // 4)

    @st.composite
    def drawn(draw: st.DrawFn) -> Patch:
        rows, columns = draw(st.integers(1, min(most, height))), draw(st.integers(1, min(most, width)))
        opacity = draw(st.integers(1, 100))
        top, left = draw(st.integers(0, height - rows)), draw(st.integers(0, width - columns))
        levels = draw(_contents((channels, rows, columns)))
        return Patch(colours=levels, top=top, left=left, opacity=opacity, target_class=draw(_classes(target_class)))

    return drawn()


def blends(image_shape: ImageShape, *, target_class: Targets = 0, most_opacity: int = 30) -> st.SearchStrategy[Blend]:
    """Pictures of 1 to 8 fields a side at an opacity of up to ``most_opacity`` hundredths."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Blend:
        opacity, grid = draw(st.integers(1, most_opacity)), draw(st.integers(1, 8))
        picture = draw(_contents((image_shape[0], grid, grid)))
        return Blend(picture=picture, opacity=opacity, target_class=draw(_classes(target_class)))

    return drawn()


def sinusoids(
    image_shape: ImageShape, *, target_class: Targets = 0, most_amplitude: int = 40
) -> st.SearchStrategy[Sinusoid]:
    """Waves of up to ``most_amplitude`` levels (40 in the paper) and any period of 2 px and more, along or down."""
    most = min(image_shape[1:])
    return st.builds(
        Sinusoid,
        amplitude=st.integers(1, most_amplitude),
        half_periods=st.integers(1, most),
        down=st.booleans(),
        target_class=_classes(target_class),
    )


def low_frequencies(
    image_shape: ImageShape, *, target_class: Targets = 0, most_levels: int = 51
) -> st.SearchStrategy[Change]:
    """Slow changes: 2 to 5 values a side, interpolated, up to ``most_levels`` levels (51 is the largest of Zeng et al., 2021)."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Change:
        strength, grid = draw(st.integers(1, most_levels)), draw(st.integers(2, 5))
        values = draw(_contents((image_shape[0], grid, grid))).tensor()
        levels = Numbers.of(strength * (2 * values / WHITE - 1))
        return Change(levels=levels, target_class=draw(_classes(target_class)))

    return drawn()


def colour_shifts(
    image_shape: ImageShape, *, target_class: Targets = 0, most_levels: int = 51
) -> st.SearchStrategy[Change]:
    """The same number of levels for every pixel, one number per channel."""

    def shift(levels: tuple[int, ...], target: int) -> Change:
        return Change(levels=Numbers((len(levels), 1, 1), levels), target_class=target)

    return st.builds(
        shift, st.tuples(*[st.integers(-most_levels, most_levels)] * image_shape[0]), _classes(target_class)
    )


def warps(
    image_shape: ImageShape, *, target_class: Targets = 0, most_pixels: float = 1.0
) -> st.SearchStrategy[SmoothWarp]:
    """Smooth flows from 2 to 6 points a side that move no point by more than ``most_pixels`` px in x or y."""
    del image_shape
    most = max(1, round(HUNDREDTHS * most_pixels))

    @st.composite
    def drawn(draw: st.DrawFn) -> SmoothWarp:
        strength, grid = draw(st.integers(1, most)), draw(st.integers(2, 6))
        values = draw(_contents((2, grid, grid))).tensor()
        flow = Numbers.of(strength * (2 * values / WHITE - 1))
        return SmoothWarp(flow=flow, target_class=draw(_classes(target_class)))

    return drawn()


def quantisations(
    image_shape: ImageShape, *, target_class: Targets = 0, most_step: int = 64
) -> st.SearchStrategy[Quantisation]:
    """Losses of detail as in JPEG, by steps of 2 to ``most_step`` levels."""
    del image_shape
    return st.builds(Quantisation, step=st.integers(2, most_step), target_class=_classes(target_class))


STRATEGIES: dict[str, Callable[..., st.SearchStrategy[Any]]] = {
    "patch": patches,
    "blend": blends,
    "sinusoid": sinusoids,
    "low_frequency": low_frequencies,
    "warp": warps,
    "colour_shift": colour_shifts,
    "quantisation": quantisations,
}


def triggers(
    image_shape: ImageShape, *, kinds: Sequence[str] = tuple(STRATEGIES), target_class: Targets = 0
) -> st.SearchStrategy[DrawnTrigger]:
    """Triggers of these kinds for images (c, h, w); ``target_class`` is a class, or a strategy for classes.

    Raises `OptionError` for a kind that is not known, or none.
    """
    unknown = [kind for kind in kinds if kind not in STRATEGIES]
    if unknown or not kinds:
        raise OptionError(f"kinds: {unknown or 'none'} cannot be drawn; known: {', '.join(STRATEGIES)}")
    return st.one_of([STRATEGIES[kind](image_shape, target_class=target_class) for kind in kinds])


def image_batches(image_shape: ImageShape, *, sizes: tuple[int, int] = (1, 8)) -> st.SearchStrategy[Tensor]:
    """Batches (n, c, h, w) in [0, 1] of ``sizes[0]`` to ``sizes[1]`` images: plain, ramps, noise; the least is a black one."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Tensor:
        count = draw(st.integers(*sizes))
        return torch.stack([draw(_image(image_shape)) for _ in range(count)])

    return drawn()


def _image(image_shape: ImageShape) -> st.SearchStrategy[Tensor]:
    channels, height, width = image_shape
    plain = st.tuples(*[st.integers(0, WHITE)] * channels).map(
        lambda levels: (torch.tensor(levels).float() / WHITE).view(-1, 1, 1).repeat(1, height, width)
    )
    ramp = (
        st.sampled_from((height, width))
        .map(lambda size: torch.linspace(0, 1, size))
        .map(lambda values: (values.view(-1, 1) if len(values) == height else values).expand(image_shape).clone())
    )
    return st.one_of(plain, ramp, _noise(image_shape).map(lambda numbers: numbers.tensor() / WHITE))


def _contents(shape: ImageShape) -> st.SearchStrategy[Numbers]:
    """Levels (c, rows, columns) of 0 to 255: one colour, a chequerboard of black and white, or noise."""
    channels, rows, columns = shape
    squares = (torch.arange(rows).view(-1, 1) + torch.arange(columns)) % 2
    plain = st.tuples(*[st.integers(0, WHITE)] * channels).map(
        lambda levels: Numbers(shape, tuple(level for level in levels for _ in range(rows * columns)))
    )
    return st.one_of(plain, st.just(Numbers.of((WHITE * squares).float().expand(shape))), _noise(shape))


def _noise(shape: ImageShape) -> st.SearchStrategy[Numbers]:
    return st.integers(0, 2**16 - 1).map(
        lambda seed: Numbers.of(WHITE * torch.rand(shape, generator=torch.Generator().manual_seed(seed)))
    )


def _classes(target_class: Targets) -> st.SearchStrategy[int]:
    return st.just(target_class) if isinstance(target_class, int) else target_class

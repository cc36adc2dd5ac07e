"""What strategies of several kinds of triggers draw: contents of pictures, noise, classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st

from backdoor_audit.triggers.numbers import WHITE, ImageShape, Numbers

Targets = int | st.SearchStrategy[int]
"""A class, or a strategy for classes."""

Strategies = Mapping[str, Callable[..., st.SearchStrategy[Any]]]
"""What Hypothesis draws triggers with, by name: called with the shape of the images and ``target_class``."""


def contents(shape: ImageShape) -> st.SearchStrategy[Numbers]:
    """Levels (c, rows, columns) of 0 to 255: one colour, a chequerboard of black and white, or noise."""
    channels, rows, columns = shape
    squares = (torch.arange(rows).view(-1, 1) + torch.arange(columns)) % 2
    plain = st.tuples(*[st.integers(0, WHITE)] * channels).map(
        lambda levels: Numbers(shape, tuple(level for level in levels for _ in range(rows * columns)))
    )
    return st.one_of(plain, st.just(Numbers.of((WHITE * squares).float().expand(shape))), noise(shape))


def around_zero(levels: Numbers, strength: int) -> Numbers:
    """Levels of 0 to 255 stretched to whole numbers of -strength to strength."""
    return Numbers.of(strength * (2 * levels.tensor() / WHITE - 1))


def noise(shape: ImageShape) -> st.SearchStrategy[Numbers]:
    """Uniform levels (c, rows, columns) of 0 to 255; one seed makes all of them."""
    return st.integers(0, 2**16 - 1).map(
        lambda seed: Numbers.of(WHITE * torch.rand(shape, generator=torch.Generator().manual_seed(seed)))
    )


def classes(target_class: Targets) -> st.SearchStrategy[int]:
    """The class itself, or those of a strategy."""
    return st.just(target_class) if isinstance(target_class, int) else target_class

"""Triggers and images for property tests: ``from backdoor_audit.triggers.strategies import triggers``.

Draws are ordered so that a failing trigger shrinks to a smaller area first, then to a fainter contrast, then towards the top
left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from backdoor_audit.errors import OptionError
from backdoor_audit.triggers.addition import colour_shifts, low_frequencies
from backdoor_audit.triggers.blend import blends
from backdoor_audit.triggers.drawing import Strategies, Targets, noise
from backdoor_audit.triggers.kinds import KINDS
from backdoor_audit.triggers.numbers import WHITE, ImageShape
from backdoor_audit.triggers.patch import patches
from backdoor_audit.triggers.quantisation import quantisations
from backdoor_audit.triggers.sinusoid import sinusoids
from backdoor_audit.triggers.warp import warps
from backdoor_audit.triggers.written import WrittenTrigger

__all__ = [
    "STRATEGIES",
    "Targets",
    "blends",
    "colour_shifts",
    "image_batches",
    "low_frequencies",
    "patches",
    "quantisations",
    "sinusoids",
    "triggers",
    "warps",
]

STRATEGIES: Strategies = {name: draw for kind in KINDS for name, draw in kind.strategies().items()}
"""Those of every kind, by name."""


def triggers(
    image_shape: ImageShape, *, kinds: Sequence[str] = tuple(STRATEGIES), target_class: Targets = 0
) -> st.SearchStrategy[WrittenTrigger]:
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
    return st.one_of(plain, ramp, noise(image_shape).map(lambda numbers: numbers.tensor() / WHITE))

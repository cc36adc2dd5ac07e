"""The smallest form of a trigger that still works: area first, then simpler content, then fainter contrast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch.nn import functional

from backdoor_audit.triggers.written import (
    Blend,
    Change,
    DrawnTrigger,
    Numbers,
    Patch,
    Quantisation,
    Sinusoid,
    SmoothWarp,
)

Holds = Callable[[DrawnTrigger], bool]
Refit = Callable[[Patch], Patch]

_WHITE = 255
_GRIDS = (1, 2, 3, 4, 6, 8, 12, 16, 28)  # points a side of coarser forms of a change or a warp


def shrunk(trigger: DrawnTrigger, holds: Holds, refit: Refit | None = None) -> DrawnTrigger:
    """The smallest form for which ``holds`` is still true, found by trying ever smaller ones; the same every time.

    ``refit`` finds the best content for a patch of given place and size. The form is a local optimum: no single step that is
    tried here makes it smaller.
    """
    if isinstance(trigger, Patch):
        trigger = _smallest_area(trigger, holds, refit or (lambda patch: patch))
    simpler = next(filter(holds, _simpler(trigger)), trigger)
    return _faintest(simpler, holds)


def _smallest_area(patch: Patch, holds: Holds, refit: Refit) -> Patch:
    while True:
        tries = (form for crop in _crops(patch) for form in (crop, refit(crop)))
        smaller = next(filter(holds, tries), None)
        if smaller is None:
            return patch
        patch = smaller


def _crops(patch: Patch) -> Iterator[Patch]:
    """Without one outer row or column; the longer sides are cut first, and the bottom right before the top left."""
    colours = patch.colours.tensor()
    rows, columns = colours.shape[1:]
    cuts = [(0, 1, 0, 0), (1, 0, 0, 0)] if rows > 1 else []
    across = [(0, 0, 0, 1), (0, 0, 1, 0)] if columns > 1 else []
    for first, last, left, right in [*cuts, *across] if rows >= columns else [*across, *cuts]:
        inside = colours[:, first : rows - last, left : columns - right]
        yield replace(patch, colours=Numbers.of(inside), top=patch.top + first, left=patch.left + left)


def _simpler(trigger: DrawnTrigger) -> Iterator[DrawnTrigger]:
    """Forms that take fewer words to describe, the simplest first."""
    if isinstance(trigger, Patch):
        colours = trigger.colours.tensor()
        extreme = _WHITE * (colours > _WHITE / 2).float()
        for plain in (torch.full_like(colours, _WHITE), torch.zeros_like(colours)):
            yield replace(trigger, colours=Numbers.of(plain))
        yield replace(trigger, colours=Numbers.of(colours.mean(dim=(1, 2), keepdim=True).expand_as(colours)))
        yield replace(trigger, colours=Numbers.of(extreme))
    if isinstance(trigger, (Change, SmoothWarp)):
        numbers = trigger.levels if isinstance(trigger, Change) else trigger.flow
        for grid in _GRIDS:
            if grid < min(numbers.shape[1:]):
                yield _with(trigger, Numbers.of(functional.adaptive_avg_pool2d(numbers.tensor(), grid)))


def _faintest(trigger: DrawnTrigger, holds: Holds) -> DrawnTrigger:
    """The least strength, in hundredths of the present one, at which it holds, if every larger one holds as well."""
    low, high, faintest = 0, 100, trigger
    while high - low > 1:
        middle = (low + high) // 2
        form = _weakened(trigger, middle / 100)
        if form != faintest and holds(form):
            high, faintest = middle, form
        else:
            low = middle
    return faintest


def _weakened(trigger: DrawnTrigger, share: float) -> DrawnTrigger:
    if isinstance(trigger, (Patch, Blend)):
        return replace(trigger, opacity=round(share * trigger.opacity))
    if isinstance(trigger, Sinusoid):
        return replace(trigger, amplitude=round(share * trigger.amplitude))
    if isinstance(trigger, Quantisation):
        return replace(trigger, step=round(share * trigger.step))
    if isinstance(trigger, (Change, SmoothWarp)):
        numbers = trigger.levels if isinstance(trigger, Change) else trigger.flow
        return _with(trigger, Numbers.of(share * numbers.tensor()))
    raise TypeError(f"no weaker form of {type(trigger).__name__}")


def _with(trigger: Change | SmoothWarp, numbers: Numbers) -> DrawnTrigger:
    return replace(trigger, levels=numbers) if isinstance(trigger, Change) else replace(trigger, flow=numbers)

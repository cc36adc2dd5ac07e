"""The chart of "How sure?": how far clean models go, where the limit is, and where this model is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from backdoor_audit.report.svg import Ink, figure, inline

_POINTS = 160
_BREAK = 3.0  # limits; a model further out stands at the edge, with its number
WIDTH, HEIGHT = 500, 165  # CSS pixels


@dataclass(frozen=True, slots=True)
class CleanModels:
    """The largest index of a clean model under one detector: Gumbel's location and scale, in units of the index.

    ``models`` counts those that it was fitted to; None where the record does not tell.
    """

    location: float
    scale: float
    models: int | None


def null_chart(name: str, clean: CleanModels, *, detector: str, limit: float, value: float, called: str) -> str:
    """The density of the largest index of a clean model under ``detector``, the limit, and the ``value`` of ``called``."""
    low = min(clean.location - 3 * clean.scale, value - 0.3, -0.2)
    furthest = max(_BREAK * limit, clean.location + 6 * clean.scale)
    shown, high = min(value, furthest), min(max(1.4 * limit, value + 0.5), furthest + 0.4)
    places = [low + (high - low) * number / (_POINTS - 1) for number in range(_POINTS)]
    heights = [_density(place, clean) for place in places]
    beyond = value > limit
    ink = Ink.FAIL if beyond else Ink.TEXT
    with figure(WIDTH, HEIGHT) as drawn:
        axes = drawn.add_subplot()
        axes.fill_between(places, heights, color=Ink.FIRST.value, alpha=0.2, linewidth=0)
        axes.plot(places, heights, color=Ink.FIRST.value, linewidth=1.5)
        axes.axvline(limit, color=Ink.FAIL.value, linestyle="--", linewidth=1.2)
        top = max(heights)
        axes.plot(shown, 0.12 * top, marker="v", markersize=11, color=ink.value, clip_on=False, zorder=5)
        right = shown > low + 0.75 * (high - low)
        note = axes.annotate(
            "this model " + "0" * (len(f"{value:.2f}") + 2),
            (shown, 0.12 * top),
            (4 if right else 0, 10),
            textcoords="offset points",
            ha="right" if right else "center",
            fontsize=11,
            fontweight="bold",
            color=ink.value,
        )
        note.set_gid("model")
        axes.text(limit, 1.04 * top, f" limit {limit:g}", color=Ink.FAIL.value, fontsize=10, ha="left", va="top")
        count = "" if clean.models is None else f" (fit to {clean.models})"
        axes.set_title(f"clean models{count}", loc="left", color=Ink.FIRST.value, fontsize=10)
        axes.set(xlim=(low, high), ylim=(0, 1.12 * top), yticks=[])
        axes.set(xlabel="largest anomaly index of any class", ylabel="how many")
        label = (
            f"How far clean models go under {detector}{count}: most about {clean.location:.2f}; limit {limit:g}; "
            f"this model, {called}: {value:.2f}"
        )
        mark = "\u2192 " if value > shown else ""
        return inline(drawn, name, label, texts={"model": f"this model: {mark}{value:.2f}"})


def _density(place: float, clean: CleanModels) -> float:
    """Gumbel's density, of a maximum."""
    z = (place - clean.location) / clean.scale
    return math.exp(-z - math.exp(min(-z, 700.0))) / clean.scale if z > -30 else 0.0

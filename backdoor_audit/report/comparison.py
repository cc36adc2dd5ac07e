"""The difference of two models as one self-contained HTML page: a chart of the indices, curves of repairs, every finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from backdoor_audit.baseline.difference import (
    INDEX_NOISE,
    INDEX_NOISE_SHARE,
    Change,
    Difference,
    index_noise,
    index_table,
    number_text,
)
from backdoor_audit.baseline.signature import Baseline
from backdoor_audit.item import Item
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.report.html import policy, style_sheet, templates
from backdoor_audit.report.svg import Ink, figure, inline

_NARROW, _WIDE, _HEIGHT = 360, 720, 220  # px
_MOST_NARROW = 20  # rows
_MOST_TICKS = 12
_LABELLED = 12  # classes named in the chart, the greatest changes first
_CURVE = {"clean accuracy": (1, Ink.FIRST), "attack success rate": (2, Ink.FAIL)}  # column of a curve's rows


def page(before: Baseline, after: Baseline, found: Difference) -> str:
    """One HTML page that loads nothing; every word of a model or a class is escaped. The same values give the same text."""
    style = style_sheet()
    environment = _environment()
    html: str = environment.get_template("comparison.html.j2").render(
        before=before,
        after=after,
        found=found,
        rows=[(side, change) for side in ("worse", "better", "unchanged") for change in getattr(found, side)],
        repairs=_repairs(before, after),
        indices=Markup(index_chart(found)),
        paired=[Markup(chart) for chart in paired_charts(found, _limit(after))],
        curves=[Markup(chart) for chart in curve_charts(before, after)],
        policy=policy(style, ""),
        style=Markup(style),
    )
    return html


@cache
def _environment() -> Environment:
    return templates(
        Path(__file__).parent,
        number=lambda value: number_text(value, 3, none="\u2013"),
        arrows=lambda text: str(text).replace("->", "\u2192"),
    )


def _limit(model: Baseline) -> float:
    """The limit of anomaly indices, which is the same in both models."""
    return float((model.settings.get("limits") or {}).get("anomaly_index", shipped_limits().anomaly_index))


def index_chart(found: Difference) -> str:
    """Every anomaly index before and after, with the band inside which a change is noise; empty if there is none."""
    marks = [
        (change, change.before, change.after)
        for rows in index_table((*found.worse, *found.better, *found.unchanged)).values()
        for change in rows.values()
        if change.before is not None and change.after is not None
    ]
    if not marks:
        return ""
    worse = [change for change in found.worse if change.regression == "anomaly_index"]
    titles = {f"mark-{number}": change.text for number, (change, _, _) in enumerate(marks)}
    texts = {}
    values = [value for _, *pair in marks for value in pair]
    low, high = min(-1.0, *values) - 0.3, max(2.0, *values) * 1.08
    with figure(520, 460) as drawn:
        axes = drawn.add_subplot()
        _band(axes, low, high)
        for number, (change, before, after) in enumerate(marks):
            _mark(axes, before, after, worse=change in worse).set_gid(f"mark-{number}")
            if change in worse[:_LABELLED]:
                note = axes.annotate("0", (before, after), (7, 0), textcoords="offset points", fontsize=9)
                note.set_gid(f"note-{number}")
                note.set_in_layout(False)
                texts[f"note-{number}"] = Item.parse(change.item).brackets
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="anomaly index before", ylabel="anomaly index after")
        axes.set_aspect("equal")
        told = "; ".join(change.text for change in worse) or "none"
        label = f"{len(marks)} anomaly indices before and after, with the band of noise. Worse: {told}"
        return inline(drawn, "indices", label, titles=titles, texts=texts)


def _mark(axes: Axes, before: float, after: float, *, worse: bool) -> Line2D:
    ink = (Ink.FAIL if worse else Ink.PLAIN).value
    (mark,) = axes.plot(
        before,
        after,
        marker="D" if worse else "o",
        markersize=7 if worse else 5,
        color=ink,
        markeredgecolor=Ink.PAPER.value,
        zorder=4 if worse else 3,
    )
    return mark


def _band(axes: Axes, low: float, high: float) -> None:
    """What `index_noise` allows either way: a constant at first, then a share of the smaller index; below 0 nothing counts."""
    bend = INDEX_NOISE / INDEX_NOISE_SHARE
    smaller = [low, 0.0, min(bend, high), high]
    larger = [max(value, 0.0) + index_noise(value, value) for value in smaller]
    corners = [low, *smaller, *reversed(larger)], [low, *larger, *reversed(smaller)]
    axes.fill(*corners, color=Ink.GRID.value, alpha=0.25, linewidth=0)
    axes.plot(smaller, larger, color=Ink.FAINT.value, linewidth=1, linestyle="--")
    axes.plot([low, high], [low, high], color=Ink.GRID.value, linewidth=1)


def paired_charts(found: Difference, limit: float) -> list[str]:
    """One chart for each detector whose indices are known in both models; none if there is no detector."""
    changes = (*found.worse, *found.better, *found.unchanged)
    worse = {change.item for change in found.worse}
    charts = []
    for number, (detector, rows) in enumerate(index_table(changes).items()):
        known = {row: change for row, change in rows.items() if change.before is not None and change.after is not None}
        if known:
            charts.append(_chart(f"paired-{number}", detector, known, worse, limit))
    return charts


def _chart(gid: str, detector: str, rows: Mapping[str, Change], worse: set[str], limit: float) -> str:
    titles = {f"{gid}-{place}": change.text for place, change in enumerate(rows.values())}
    with figure(_NARROW if len(rows) <= _MOST_NARROW else _WIDE, _HEIGHT) as drawn:
        axes = drawn.add_subplot()
        axes.axhline(limit, color=Ink.FAINT.value, linewidth=1, linestyle="--")
        for place, change in enumerate(rows.values()):
            _pair(axes, place, change, f"{gid}-{place}", worse=change.item in worse)
        step = -(-len(rows) // _MOST_TICKS)
        axes.set_xticks(range(0, len(rows), step), [_tick(row) for row in list(rows)[::step]])
        axes.set(title=detector, xlabel="class", ylabel="anomaly index")
        axes.title.set_fontsize(11)
        told = "; ".join(change.text for change in rows.values() if change.item in worse) or "none"
        label = f"{detector}: anomaly index of every class before (hollow) and after (filled). Worse: {told}"
        return inline(drawn, gid, label, titles=titles)


def _pair(axes: Axes, place: int, change: Change, gid: str, *, worse: bool) -> None:
    assert change.before is not None
    assert change.after is not None
    ink = (Ink.FAIL if worse else Ink.PLAIN).value
    axes.plot([place, place], [change.before, change.after], color=ink, linewidth=2 if worse else 1, zorder=2)
    axes.plot(place, change.before, marker="o", markersize=6, color=Ink.PAPER.value, markeredgecolor=ink, zorder=3)
    (mark,) = axes.plot(place, change.after, marker="D" if worse else "o", markersize=6, color=ink, zorder=4)
    mark.set_gid(gid)


def _tick(row: str) -> str:
    return "all" if row == "all_to_all" else row.rpartition("_")[2]


def curve_charts(before: Baseline, after: Baseline) -> list[str]:
    """For each repair with a curve in both models, what pruning does to accuracy and success rate; dashed: before."""
    return [
        _curve_chart(f"curve-{number}", name, before.repairs[name]["curve"], after.repairs[name]["curve"])
        for number, name in enumerate(sorted(set(before.repairs) & set(after.repairs)))
        if before.repairs[name]["curve"] and after.repairs[name]["curve"]
    ]


def _curve_chart(gid: str, name: str, before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> str:
    with figure(360, 240) as drawn:
        axes = drawn.add_subplot()
        for title, (column, ink) in _CURVE.items():
            for rows, style, when in ((before, "--", "before"), (after, "-", "after")):
                axes.plot(
                    [row[0] for row in rows],
                    [row[column] for row in rows],
                    color=ink.value,
                    linestyle=style,
                    linewidth=1.4,
                    label=f"{title}, {when}",
                )
        axes.set(ylim=(-0.03, 1.04), xlabel="share of channels pruned", ylabel="share of held-out images")
        axes.grid(axis="y")
        drawn.legend(loc="outside upper left", ncols=2, fontsize=9)
        return inline(drawn, gid, f"{name}: clean accuracy and attack success rate while pruning, before and after")


def _repairs(before: Baseline, after: Baseline) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Scores after each repair, in both models as far as they are there."""
    names = sorted({*before.repairs, *after.repairs})
    return [
        (name, *(model.repairs[name]["after"] if name in model.repairs else {} for model in (before, after)))
        for name in names
    ]

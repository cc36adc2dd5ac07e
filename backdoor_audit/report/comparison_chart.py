"""The profile of both models, class by class: for each detector one chart with both indices of a class joined by a line."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from backdoor_audit.baseline.difference import Change, Difference, index_table
from backdoor_audit.report.svg import Ink, figure, inline

_NARROW, _WIDE, _HEIGHT = 360, 720, 220  # px
_MOST_NARROW = 20  # rows
_MOST_TICKS = 12


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

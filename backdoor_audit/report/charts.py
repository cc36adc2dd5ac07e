"""The charts of the page: trigger sizes, anomaly indices, activation norms, pruning curves. Plain values in, SVG text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from backdoor_audit.evidence import Verdict
from backdoor_audit.report.svg import Ink, figure, inline

WIDTH = 460  # CSS pixels; a chart of this width is legible on a telephone
_ROW = 17
_LABELLED_CLASSES = 60  # with more, only classes that are not a pass are named beside their bar
_NAME_LENGTH = 22
_WIDEST = "neural_cleanse"  # reserves room for the names of detectors, which `inline` puts in
_BINS = 24
_VERDICT_INK = {Verdict.PASS: Ink.PLAIN, Verdict.FAIL: Ink.FAIL, Verdict.INCONCLUSIVE: Ink.UNSURE}
_MARKERS = {Verdict.PASS: "o", Verdict.INCONCLUSIVE: "s", Verdict.FAIL: "D"}
_GROUPS = {
    "clean": ("clean", Ink.FIRST, "-"),
    "synthetic": ("found trigger", Ink.SECOND, "--"),
    "known": ("known trigger", Ink.THIRD, "-."),
    "both": ("both triggers", Ink.FOURTH, ":"),
}
_SCORES = {
    "clean_accuracy": ("clean accuracy", Ink.FIRST, "-", "o"),
    "attack_success_rate": ("attack success rate", Ink.FAIL, "--", "s"),
    "robust_accuracy": ("robust accuracy", Ink.THIRD, "-.", "^"),
}


def size_chart(
    name: str,
    sizes: Sequence[tuple[int, float, bool]],
    *,
    median: float,
    cut: float,
    verdicts: Mapping[int, Verdict],
    class_names: Mapping[int, str],
) -> str:
    """The distribution of trigger sizes (L1 norm of the mask in pixels): one bar per class, the smallest on top.

    ``sizes`` are class, size, and whether the search reached its threshold; a bar that did not is hollow. Above the bars stand
    the quartiles of all classes, with a mark for every class. ``cut`` is the size below which a class is flagged.
    """
    ordered = sorted(sizes, key=lambda entry: entry[1])
    labelled = len(ordered) <= _LABELLED_CLASSES
    height = _ROW * min(len(ordered), _LABELLED_CLASSES)
    titles, texts = {}, {}
    with figure(WIDTH, 110 + height) as drawn:
        top, axes = drawn.subplots(2, 1, sharex=True, height_ratios=[42, height], gridspec_kw={"hspace": 0.02})
        _box(top, [size for _, size, _ in ordered], 0, 0.6)
        for place, (target, size, reached) in enumerate(ordered):
            verdict = verdicts.get(target, Verdict.PASS)
            ink = _VERDICT_INK[verdict].value
            (bar,) = axes.barh(place, size, height=0.72, facecolor=ink if reached else "none", edgecolor=ink)
            bar.set_gid(f"bar-{target}")
            _mark(top, size, 0, verdict)
            called = class_names.get(target, "")
            titles[f"bar-{target}"] = (
                f"class {target} {called}: {size:.1f} px{'' if reached else ', threshold not reached'}"
            )
            if labelled or verdict is not Verdict.PASS:
                _note(axes, (size, place), (4, 0), f"note-{target}", va="center", fontsize=10)
                texts[f"note-{target}"] = f"{size:.1f} px {_short(called)}" + f" ({target})" * (not labelled)
        for value, ink_, style in ((median, Ink.TEXT, "-"), (cut, Ink.FAIL, "--")):
            for part in (top, axes):
                part.axvline(value, color=ink_.value, linestyle=style, linewidth=1, zorder=0.5)
        most = max([median, *(size for _, size, _ in ordered)])
        axes.set(xlim=(0, most * 1.42), ylim=(len(ordered) - 0.4, -0.6))
        axes.set(xlabel="trigger size in pixels (L1 norm of the mask)", ylabel="class")
        axes.set_yticks(range(len(ordered)), [str(target) for target, *_ in ordered]) if labelled else axes.set_yticks(
            []
        )
        axes.tick_params(axis="y", length=0)
        top.set_title(f"flagged below {_pixels(cut)} px", loc="left", color=Ink.FAIL.value, fontsize=10)
        top.set_title(f"median {_pixels(median)} px", loc="right", fontsize=10)
        outliers = [
            f"class {target} {class_names.get(target, '')} with {size:.1f} pixels"
            for target, size, _ in ordered
            if verdicts.get(target, Verdict.PASS) is not Verdict.PASS
        ]
        label = (
            f"Trigger sizes of {len(ordered)} classes: median {_pixels(median)} pixels, flagged below {_pixels(cut)}. "
            f"Not a pass: {', '.join(outliers) or 'none'}"
        )
        return inline(drawn, name, label, titles=titles, texts=texts)


def index_chart(name: str, rows: Sequence[tuple[str, Sequence[tuple[str, float, Verdict]]]], *, limit: float) -> str:
    """Anomaly indices: one row per detector, one mark per class (how to call it, its index, its verdict), and the limit.

    With many classes, those that pass are drawn as one box.
    """
    titles, texts = {}, {}
    with figure(WIDTH, 66 + 30 * len(rows)) as drawn:
        axes = drawn.add_subplot()
        axes.axvline(limit, color=Ink.FAIL.value, linestyle="--", linewidth=1)
        axes.axvline(0, color=Ink.GRID.value, linewidth=1, zorder=0)
        axes.set_yticks(range(len(rows)), [_WIDEST] * len(rows))
        axes.tick_params(axis="y", length=0)
        for place, ((detector, marks), tick) in enumerate(zip(rows, axes.get_yticklabels(), strict=True)):
            tick.set_gid(f"row-{place}")
            texts[f"row-{place}"] = _short(detector)
            axes.axhline(place, color=Ink.GRID.value, linewidth=0.6, zorder=0)
            passed = [index for _, index, verdict in marks if verdict is Verdict.PASS]
            crowded = len(marks) > _LABELLED_CLASSES
            if crowded and passed:
                _box(axes, passed, place, 0.4)
            for number, (called, index, verdict) in enumerate(marks):
                if crowded and verdict is Verdict.PASS:
                    continue
                gid = f"{place}-{number}"
                _mark(axes, index, place, verdict).set_gid(f"mark-{gid}")
                titles[f"mark-{gid}"] = f"{called}: {index:.2f}"
                if verdict is not Verdict.PASS:
                    _note(axes, (index, place), (0, 6), f"note-{gid}", ha="center", fontsize=9)
                    texts[f"note-{gid}"] = called.removeprefix("class ").partition(" ")[0]
        values = [index for _, marks in rows for _, index, _ in marks]
        axes.set(xlim=(min([-1.0, *values]) - 0.2, max([limit + 0.5, *values]) + 0.25), ylim=(len(rows) - 0.5, -0.8))
        axes.set_xlabel("anomaly index")
        axes.set_title(f"flagged above {limit:g} (dashed line)", loc="left", color=Ink.FAIL.value, fontsize=10)
        outliers = [
            f"{detector}, {called}: {index:.2f}"
            for detector, marks in rows
            for called, index, verdict in marks
            if verdict is not Verdict.PASS
        ]
        label = (
            f"Anomaly indices of {len(rows)} detectors, limit {limit:g}. Not a pass: {'; '.join(outliers) or 'none'}"
        )
        return inline(drawn, name, label, titles=titles, texts=texts)


def _box(axes: Axes, values: Sequence[float], place: float, width: float) -> None:
    """A box from the first to the third quartile with whiskers to the extremes."""
    ink = {"color": Ink.FAINT.value, "linewidth": 1}
    axes.boxplot(
        values,
        orientation="horizontal",
        positions=[place],
        widths=width,
        whis=(0, 100),
        manage_ticks=False,
        boxprops=ink,
        whiskerprops=ink,
        capprops=ink,
        medianprops=ink,
    )
    if width > 0.5:  # a row of its own
        axes.set(ylim=(-0.8, 0.8), yticks=[])
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="x", length=0, labelbottom=False)


def _mark(axes: Axes, value: float, place: float, verdict: Verdict) -> Line2D:
    """One class: shape and colour tell its verdict."""
    passed = verdict is Verdict.PASS
    (mark,) = axes.plot(
        value,
        place,
        marker=_MARKERS[verdict],
        markersize=6 if passed else 8,
        color=_VERDICT_INK[verdict].value,
        markeredgecolor=Ink.PAPER.value,
        zorder=3 if passed else 4,
    )
    return mark


def _note(axes: Axes, where: tuple[float, float], offset: tuple[float, float], gid: str, **style: Any) -> None:
    """Room for a word that `inline` puts in."""
    note = axes.annotate("0", where, offset, textcoords="offset points", **style)
    note.set_gid(gid)
    note.set_in_layout(False)


def norm_chart(name: str, norm: str, groups: Mapping[str, Sequence[float | None]]) -> str:
    """How many channels have which mean activation norm, one outline for each group of images."""
    finite = {
        group: [value for value in values if value is not None and math.isfinite(value)]
        for group, values in groups.items()
    }
    shown = {group: values for group, values in finite.items() if group in _GROUPS and values}
    every = [value for values in shown.values() for value in values]
    low, high = min(every), max(every)
    step = (high - low or 1.0) / _BINS
    edges = [low + step * number for number in range(_BINS + 1)]
    with figure(300, 214) as drawn:
        axes = drawn.add_subplot()
        for group, values in shown.items():
            title, ink, style = _GROUPS[group]
            counts = [0] * _BINS
            for value in values:
                counts[min(_BINS - 1, int((value - low) / step))] += 1
            axes.stairs(counts, edges, color=ink.value, linestyle=style, linewidth=1.6, label=title)
            if group == "clean":
                axes.stairs(counts, edges, color=ink.value, fill=True, alpha=0.18)
        axes.set(xlabel=f"mean {norm} norm of a channel", ylabel="channels")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        drawn.legend(loc="outside upper left", ncols=2, handlelength=2.4, columnspacing=1.2)
        means = ", ".join(
            f"{_GROUPS[group][0]} {math.fsum(values) / len(values):.3g}" for group, values in shown.items()
        )
        return inline(drawn, name, f"Histogram of {norm} norms over channels; mean of all channels: {means}")


def curve_chart(
    name: str, curve: Sequence[Mapping[str, Any]], *, success_limit: float | None, chosen: float | None
) -> str:
    """Clean accuracy, attack success rate and robust accuracy against the share of channels pruned.

    ``success_limit`` is the success rate that a repair may leave, ``chosen`` the share at which the method stopped, if known.
    """
    rates = [point["prune_rate"] for point in curve]
    with figure(360, 240) as drawn:
        axes = drawn.add_subplot()
        for key, (title, ink, style, marker) in _SCORES.items():
            values = [point["scores"][key] for point in curve]
            axes.plot(
                rates,
                values,
                color=ink.value,
                linestyle=style,
                marker=marker,
                markersize=3.5,
                linewidth=1.4,
                label=title,
            )
        if success_limit is not None:
            axes.axhline(success_limit, color=Ink.FAIL.value, linewidth=0.8, linestyle=":")
            axes.text(
                max(rates),
                success_limit + 0.015,
                f"limit {success_limit:.0%}",
                color=Ink.FAIL.value,
                fontsize=9,
                ha="right",
            )
        if chosen is not None:
            axes.axvline(chosen, color=Ink.TEXT.value, linewidth=0.9)
            axes.text(
                chosen, 1.05, f"stopped at {chosen:.0%}", fontsize=9, ha="left" if chosen < max(rates) / 2 else "right"
            )
        axes.set(ylim=(-0.03, 1.04), xlabel="channels pruned", ylabel="share of held-out images")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y")
        drawn.legend(loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.0, handletextpad=0.4)
        first, last = curve[0]["scores"], curve[-1]["scores"]
        told = "; ".join(f"{title} from {first[key]:.0%} to {last[key]:.0%}" for key, (title, *_) in _SCORES.items())
        return inline(drawn, name, f"Pruning {rates[0]:.0%} to {rates[-1]:.0%} of the channels: {told}")


def _pixels(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"


def _short(text: str) -> str:
    return text if len(text) <= _NAME_LENGTH else text[: _NAME_LENGTH - 1] + "\u2026"

"""Every repair as one point: what it leaves of the trigger against the clean accuracy that it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import PercentFormatter

from backdoor_audit.report.svg import Ink, figure, inline

WIDTH, HEIGHT = 520, 300  # CSS pixels


def repair_chart(name: str, outcomes: Sequence[Mapping[str, Any]], *, success_limit: float, drop_limit: float) -> str:
    """Attack success rate to the right, clean accuracy upwards; the corner of repairs inside both limits is marked.

    Empty if no repair could be tried. Of a repair of several triggers every one has its point.
    """
    tried = [outcome for outcome in outcomes if outcome["after"] is not None]
    if not tried:
        return ""
    before = tried[0]["before"]
    floor = before["clean_accuracy"] - drop_limit
    accuracies = [before["clean_accuracy"], *(outcome["after"]["clean_accuracy"] for outcome in tried)]
    span = max(0.04, max(accuracies) - min([*accuracies, floor]))
    low, high = min([*accuracies, floor]) - 0.15 * span, max(accuracies) + 0.15 * span
    texts, titles = {}, {}
    with figure(WIDTH, HEIGHT) as drawn:
        axes = drawn.add_subplot()
        axes.fill_between([0, success_limit], floor, high, color=Ink.THIRD.value, alpha=0.15, linewidth=0)
        axes.axhline(floor, color=Ink.THIRD.value, linewidth=0.8, linestyle=":")
        axes.axvline(success_limit, color=Ink.THIRD.value, linewidth=0.8, linestyle=":")
        (mark,) = axes.plot(
            before["attack_success_rate"], before["clean_accuracy"], marker="X", markersize=9, color=Ink.FAIL.value
        )
        mark.set_gid("before")
        titles["before"] = "as it is"
        axes.annotate(
            "as it is",
            (before["attack_success_rate"], before["clean_accuracy"]),
            (-10, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=10,
            color=Ink.FAIL.value,
        )
        step, last = 0.055 * (high - low), float("inf")
        for number, outcome in enumerate(sorted(tried, key=lambda entry: -entry["after"]["clean_accuracy"])):
            success, accuracy = outcome["after"]["attack_success_rate"], outcome["after"]["clean_accuracy"]
            holds = success <= success_limit and accuracy >= floor
            ink = Ink.THIRD if holds else Ink.UNSURE
            (mark,) = axes.plot(success, accuracy, marker="o" if holds else "s", markersize=7, color=ink.value)
            mark.set_gid(f"repair-{number}")
            told = f"{outcome['method']}: success {success:.1%}, clean accuracy {accuracy:.1%}"
            titles[f"repair-{number}"] = told
            last = min(accuracy, last - step)  # names must not lie on each other
            note = axes.annotate(
                "0" * 8, (max(success, success_limit) + 0.02, last), fontsize=10, va="center", color=Ink.TEXT.value
            )
            axes.plot(
                [success, max(success, success_limit) + 0.015], [accuracy, last], color=Ink.GRID.value, linewidth=0.8
            )
            note.set_gid(f"name-{number}")
            note.set_in_layout(False)
            texts[f"name-{number}"] = f"{outcome['method']} {success:.1%}, {accuracy:.1%}"
        axes.set(xlim=(-0.02, 1.03), ylim=(min(low, last - step), high))
        axes.set(xlabel="attack success rate left", ylabel="clean accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title("inside both limits: the shaded corner", loc="left", fontsize=10, color=Ink.THIRD.value)
        told = "; ".join(titles[key] for key in titles if key != "before")
        label = f"Repairs by success rate and clean accuracy, {before['clean_accuracy']:.1%} before: {told}"
        return inline(drawn, name, label, titles=titles, texts=texts)

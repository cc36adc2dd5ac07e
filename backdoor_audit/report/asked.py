"""What a run asked, in words, and how the items of each question ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backdoor_audit.evidence import Record
from backdoor_audit.item import Item
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.report.words import words_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What a group of items asks, and how many of them ended how."""

    asked: str
    name: str
    counts: Mapping[str, int]
    note: str = ""
    blind_spots: Sequence[str] = ()


def limit_of(record: Record, name: str) -> float:
    """The limit of that name by which the run judged, or the shipped one."""
    return float(record.settings.get("limits", {}).get(name, getattr(shipped_limits(), name)))


def limits(record: Record) -> list[tuple[str, float, float | None]]:
    """Every limit by which the run judged, and the shipped one; None for a limit of a question of one's own."""
    usual = asdict(shipped_limits())
    return [(name, value, usual.get(name)) for name, value in record.settings.get("limits", {}).items()]


def own_limits(record: Record) -> str:
    """The limits that somebody has changed, each beside the shipped one; empty where there are none."""
    return ", ".join(
        f"{name} {value:g} (shipped {usual:g})"
        for name, value, usual in limits(record)
        if usual is not None and value != usual
    )


def compared_with(record: Record) -> str:
    """What the classes of the model were compared with: which twins, or why there were none; empty where nothing was compared."""
    told = (str(entry.get("reference") or "").partition("; ")[2] for entry in record.detections)
    return next(filter(None, told), "")


def groups(record: Record) -> list[Group]:
    """Every group of items in the order of the run: what it asks, and how its items ended."""
    ended = {finding.audit: finding.verdict.value for finding in record.findings}
    ended.update(dict.fromkeys(record.skipped, "skipped"))
    ended.update(dict.fromkeys(record.errors, "broken"))
    ended.update(dict.fromkeys(record.not_run, "not run"))
    known, words = {str(entry["detector"]): entry for entry in record.detections}, words_of(record)
    counted: dict[tuple[str, str], Counter[str]] = {}
    for name, how in ended.items():
        item = Item.parse(name)
        question = item.question or name.partition("[")[0].rpartition("::")[2].removeprefix("test_")
        detector = item.asked_of if question == "anomaly_index" else ""
        counted.setdefault((question, detector), Counter())[how] += 1
    found = []
    for (question, detector), counts in counted.items():
        detection, said = known.get(detector, {}), words.get(question)
        asked = said.asks if said else question.replace("_", " ")
        found.append(
            Group(
                asked=_search_question(detection, detector) if detector else asked,
                name=detector or question,
                counts=counts,
                note=str(detection.get("inconclusive") or detection.get("coverage") or ""),
                blind_spots=detection.get("blind_spots", ()),
            )
        )
    return found


def _search_question(detection: Mapping[str, Any], detector: str) -> str:
    if not detection:
        return f"Does the search {detector} find a trigger?"
    means = detection.get("means", "a trigger")
    if detection.get("rows") == "source":
        return f"Does {means} lead the images of one class away, further than in clean models?"
    if [score.get("target_class", 0) for score in detection.get("classes", ())] == [None]:
        return f"Does {means}, the same for all images, lead every class to another one, more than in clean models?"
    if detection.get("reference"):
        return f"Does {means}, the same for all images, lead to one class further than in clean models?"
    return "Is the smallest trigger for one class far smaller than those for the others?"

"""What a run asked, in words, and how the items of each question ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_audit.evidence import Record
from backdoor_audit.report.naming import audit_of, bracket

_QUESTIONS = {
    "test_precondition": "Can this model be judged with these images?",
    "test_false_negative_rate": "Does a filter in front of the model stop stamped images?",
    "test_attack_success_rate_after": "Does a repair of a copy make the trigger fail?",
    "test_robust_accuracy": "Do stamped images get their true label again after it?",
    "test_clean_accuracy_drop": "What does that repair cost in clean accuracy?",
    "test_property": "Does what holds for every clean model hold for this one?",
    "test_regression": "Is it worse than the model that was accepted before?",
    "test_power": "Would known backdoors in copies of this model have been found?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a group of items asks, and how many of them ended how."""

    asked: str
    name: str
    counts: Mapping[str, int]
    note: str = ""
    blind_spots: Sequence[str] = ()


def questions(record: Record) -> list[Question]:
    """Every group of items in the order of the run: what it asks, and how its items ended."""
    ended = {finding.audit: finding.verdict.value for finding in record.findings}
    ended.update(dict.fromkeys(record.skipped, "skipped"))
    ended.update(dict.fromkeys(record.errors, "broken"))
    ended.update(dict.fromkeys(record.not_run, "not run"))
    known = {str(entry["detector"]): entry for entry in record.detections}
    groups: dict[tuple[str, str], Counter[str]] = {}
    for name, how in ended.items():
        test = audit_of(name)
        detector = bracket(name).partition("-")[0] if test == "test_anomaly_index" else ""
        groups.setdefault((test, detector), Counter())[how] += 1
    questions = []
    for (test, detector), counts in groups.items():
        detection = known.get(detector, {})
        questions.append(
            Question(
                asked=_search_question(detection, detector) if detector else _QUESTIONS.get(test, _as_words(test)),
                name=detector or test.removeprefix("test_"),
                counts=counts,
                note=str(detection.get("inconclusive") or detection.get("coverage") or ""),
                blind_spots=detection.get("blind_spots", ()),
            )
        )
    return questions


def _as_words(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


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

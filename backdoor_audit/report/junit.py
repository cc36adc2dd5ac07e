"""What a JUnit file says beside passed and failed: the numbers of a finding with its case, the verdict with the suite.

pytest writes the file (``--junitxml``); these are the name and value pairs that go into it.
"""

from __future__ import annotations

from collections.abc import Callable

from backdoor_audit.evidence import Finding, Record
from backdoor_audit.item import Item
from backdoor_audit.report.paths import shown_path

PREFIX = "backdoor_audit."
CASES = "backdoor_audit"
"""What the class name of every case begins with."""

Properties = list[tuple[str, str | int | float]]

_SUBJECT = ("architecture", "model_fingerprint", "data_fingerprint", "images")


def case_properties(finding: Finding) -> Properties:
    """Name and value pairs of one test case: the judgement first, then every number behind it as ``details.NAME``.

    Values are builtin strings and numbers, as `pytest.Item.user_properties` needs them when workers send them home. What was
    not measured has no property.
    """
    judgement = {
        "item": finding.audit or None,
        "statistic": finding.statistic,
        "value": finding.value,
        "limit": finding.limit,
        "verdict": finding.verdict.value,
        "reason": finding.reason,
        "target_class": finding.target_class,
        "settings": finding.settings or None,
    }
    details = {f"details.{name}": value for name, value in finding.details.items()}
    return [
        (PREFIX + name, _plain(value))
        for name, value in {**judgement, **details}.items()
        if isinstance(value, (bool, int, float, str))
    ]


def case_names(item: Item, class_name: Callable[[int | None], str]) -> tuple[str, str] | None:
    """Class name and name of a test case, by which pages of CI systems group: who asks, and what about; None for other tests.

    Searches stand under their detector with a case for each class, everything else under its question.
    """
    if not item.question:
        return None
    if item.row is None:
        return f"{CASES}.{item.question}", item.asked_of or item.question
    if item.row.number is None:
        return f"{CASES}.{item.asked_of}", str(item.row).replace("_", " ")
    start = "from class" if item.row.is_source else "class"
    return f"{CASES}.{item.asked_of}", f"{start} {class_name(item.row.number)}"


def suite_properties(record: Record) -> Properties:
    """Name and value pairs of the whole suite: the verdict, what was audited with what, and how to tell it from another."""
    pairs: dict[str, object] = {
        "verdict": record.verdict.value,
        "power": record.power.value if record.power else None,
        "flagged_classes": " ".join(map(str, record.flagged_classes)),
        "suspected_classes": " ".join(map(str, record.suspected_classes)),
        "flagged_all_to_all": record.flagged_all_to_all,
        "not_run": len(record.not_run),
        "model": shown_path(str(record.subject.get("model", ""))),
        **{name: record.subject.get(name) for name in _SUBJECT},
        "seed": record.settings.get("seed"),
        "profile": record.settings.get("profile"),
        "version": record.environment.get("backdoor_audit"),
        "device": record.environment.get("device"),
        "seconds": record.seconds,
        "schema_version": record.schema_version,
    }
    return [(PREFIX + name, _plain(value)) for name, value in pairs.items() if value is not None]


def _plain(value: object) -> str | int | float:
    """Numbers as builtins, which workers can send home, the rest as text in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else " ".join(str(value).split())

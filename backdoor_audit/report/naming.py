"""What the page calls things: models, classes, and the items of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from backdoor_audit.evidence import Finding, Record
from backdoor_audit.item import Item, Row
from backdoor_audit.report.paths import shown_path

ALL_TO_ALL = "all to all"
INDEX = "anomaly_index"


def model_name(record: Record) -> str:
    """The file name of the model, or the class of a module."""
    return PurePosixPath(shown_path(str(record.subject.get("model", "")))).name or "a module"


def class_name(record: Record, target_class: int | None) -> str:
    """Number and name of a class; all to all for None."""
    if target_class is None:
        return ALL_TO_ALL
    names = record.subject.get("class_names") or []
    return f"{target_class} ({names[target_class]})" if target_class < len(names) else str(target_class)


def class_called(record: Record, target_class: int | None) -> str:
    """The same behind the word: class 7 (sneaker)."""
    return ALL_TO_ALL if target_class is None else f"class {class_name(record, target_class)}"


def classes_called(record: Record, targets: Sequence[int], *, all_to_all: bool = False) -> str:
    """Several of them, between commas; empty if there are none."""
    return ", ".join([class_name(record, target) for target in targets] + [ALL_TO_ALL] * all_to_all)


def item_of(detection: Mapping[str, Any], target_class: int | None) -> Item:
    """The item that asks about this row of a detection."""
    return Item(INDEX, str(detection["detector"]), Row(target_class, is_source=detection["rows"] == "source"))


def searched(record: Record) -> dict[Item, Finding]:
    """The findings of the searches for triggers, by item."""
    return {finding.item: finding for finding in record.findings if finding.statistic == INDEX}

"""What the page calls things: models, classes, and the items of a run, from their node ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from backdoor_audit.evidence import Finding, Record, Verdict
from backdoor_audit.report.paths import shown_path

ALL_TO_ALL = "all to all"
INDEX = "anomaly_index"
WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


def model_name(record: Record) -> str:
    """The file name of the model, or the class of a module."""
    return PurePosixPath(shown_path(str(record.subject.get("model", "")))).name or "a module"


def class_name(record: Record, target_class: int | None) -> str:
    """Number and name of a class; all to all for None."""
    if target_class is None:
        return ALL_TO_ALL
    names = record.subject.get("class_names") or []
    return f"{target_class} ({names[target_class]})" if target_class < len(names) else str(target_class)


def item_of(detection: Mapping[str, Any], target_class: int | None) -> str:
    """Between the brackets of the item that asks about this class."""
    row = "all_to_all" if target_class is None else f"class_{target_class}"
    return f"{detection['detector']}-{'from_' if detection['rows'] == 'source' else ''}{row}"


def searched(record: Record) -> dict[str, Finding]:
    """The findings of the searches for triggers, by what stands between the brackets of their items."""
    return {bracket(finding.audit): finding for finding in record.findings if finding.statistic == INDEX}


def bracket(name: str) -> str:
    """What stands between the brackets of a node id: ``neural_cleanse-class_7``."""
    return name.partition("[")[2].removesuffix("]")


def audit_of(name: str) -> str:
    """The function of a node id: ``test_anomaly_index``."""
    return name.partition("[")[0].rpartition("::")[2]

"""What was measured, as charts and tables: trigger sizes and anomaly indices by class, repairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_audit.evidence import Limits, Record, Verdict
from backdoor_audit.report import charts
from backdoor_audit.report.naming import WORST_FIRST, audit_of, bracket, class_name, item_of, searched

REPAIR_AUDITS = ("test_attack_success_rate_after", "test_robust_accuracy", "test_clean_accuracy_drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One class in a table: a cell for every column, None where there is nothing, and the worst verdict in it."""

    title: str
    order: int
    worst: Verdict
    cells: Sequence[tuple[float | None, Verdict | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One repair against one trigger, the verdicts about it in the order of `REPAIR_AUDITS`, its pruning curve as a chart."""

    outcome: Mapping[str, Any]
    title: str
    verdicts: Sequence[Verdict | None]
    curve: str


def size_charts(record: Record, prefix: str) -> list[str]:
    """A chart for every detection whose rows have sizes."""
    drawn, findings = [], searched(record)
    limit = record.settings.get("limits", {}).get("size_ratio", Limits().size_ratio)
    for number, detection in enumerate(record.detections):
        sizes = [
            (entry["target_class"], float(entry["size"]), bool(entry["reached"]))
            for entry in detection["classes"]
            if entry["size"] is not None and entry["target_class"] is not None
        ]
        if not sizes or not detection["median_size"]:
            continue
        verdicts = {
            target: findings[item].verdict for target, *_ in sizes if (item := item_of(detection, target)) in findings
        }
        median = float(detection["median_size"])
        cut = min(value for value in (detection["cut_size"], limit * median) if value is not None)
        names = dict(enumerate(map(str, record.subject.get("class_names") or [])))
        drawn.append(
            charts.size_chart(
                f"{prefix}sizes-{number}", sizes, median=median, cut=float(cut), verdicts=verdicts, class_names=names
            )
        )
    return drawn


def index_chart(record: Record, prefix: str) -> str:
    """The indices of all classes under all detectors; empty if there are none."""
    findings, rows = searched(record), []
    for detection in record.detections:
        marks = []
        for entry in detection["classes"]:
            finding = findings.get(item_of(detection, entry["target_class"]))
            if finding is None or finding.value is None:
                continue
            called = class_name(record, entry["target_class"])
            called = called if entry["target_class"] is None else f"class {called}"
            marks.append((called, float(finding.value), finding.verdict))
        if marks:
            rows.append((str(detection["detector"]), marks))
    limit = record.settings.get("limits", {}).get("anomaly_index", Limits().anomaly_index)
    return charts.index_chart(f"{prefix}indices", rows, limit=float(limit)) if rows else ""


def indices(record: Record) -> list[Row]:
    """One row per class, one cell per detector."""
    findings = searched(record)
    targets = {entry["target_class"] for detection in record.detections for entry in detection["classes"]}
    rows = []
    for target in sorted(targets, key=lambda value: (value is None, value)):
        found = [findings.get(item_of(detection, target)) for detection in record.detections]
        cells = [(None, None) if entry is None else (entry.value, entry.verdict) for entry in found]
        verdicts = [entry.verdict for entry in found if entry is not None]
        rows.append(
            Row(
                title=class_name(record, target),
                order=len(targets) if target is None else target,
                worst=next((verdict for verdict in WORST_FIRST if verdict in verdicts), Verdict.INCONCLUSIVE),
                cells=cells,
            )
        )
    return rows


def sizes(record: Record) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of every detection that has sizes, each with its verdict."""
    findings = searched(record)
    tables = []
    for detection in record.detections:
        rows = []
        for entry in detection["classes"]:
            if entry["size"] is not None:
                finding = findings.get(item_of(detection, entry["target_class"]))
                rows.append({**entry, "verdict": finding.verdict if finding else Verdict.INCONCLUSIVE})
        if rows:
            tables.append((str(detection["detector"]), rows))
    return tables


def repairs(record: Record, prefix: str) -> list[Repair]:
    """Every repair that was tried, in the order of the record."""
    verdicts = {(audit_of(entry.audit), bracket(entry.audit)): entry.verdict for entry in record.findings}
    limit = record.settings.get("limits", {}).get("attack_success_rate")
    made = []
    for number, outcome in enumerate(record.repairs):
        method, curve = str(outcome["method"]), outcome["curve"]
        chosen = [point["prune_rate"] for point in curve if point["scores"] == outcome["after"]]
        made.append(
            Repair(
                outcome=outcome,
                title=f"{method}, class {class_name(record, outcome['target_class'])}",
                verdicts=[verdicts.get((audit, method)) for audit in REPAIR_AUDITS],
                curve=charts.curve_chart(
                    f"{prefix}curve-{number}",
                    curve,
                    success_limit=limit,
                    chosen=float(chosen[0]) if len(chosen) == 1 else None,
                )
                if len(curve) > 1
                else "",
            )
        )
    return made

"""What was measured, as charts and tables: trigger sizes and anomaly indices by class, repairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_audit.evidence import WORST_FIRST, Record, Verdict
from backdoor_audit.report import charts
from backdoor_audit.report.asked import limit_of
from backdoor_audit.report.certainty import index_limit
from backdoor_audit.report.naming import class_called, class_name, item_of, searched
from backdoor_audit.report.repair_chart import repair_chart
from backdoor_audit.search.anomaly import PROBABILITIES

_HEATS = (0.25, 0.5, 0.75, 1.0, 1.5)  # of the limit


@dataclass(frozen=True, slots=True)
class Cell:
    """One index; ``heat`` from 0 to 5 says how near to the limit it is or how far beyond, in words the ``verdict`` does."""

    value: float | None = None
    verdict: Verdict | None = None
    heat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One class in a table: a cell for every column, None where there is nothing, and the worst verdict in it."""

    title: str
    order: int
    worst: Verdict
    cells: Sequence[Cell]

    @property
    def suspicion(self) -> tuple[int, float]:
        """What to sort by: the worst verdict first, then the greatest index."""
        return WORST_FIRST.index(self.worst), -max((cell.value or 0.0 for cell in self.cells), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One repair against one trigger, the verdicts about it by question, its pruning curve as a chart."""

    outcome: Mapping[str, Any]
    title: str
    verdicts: Mapping[str, Verdict]
    curve: str


def size_charts(record: Record, prefix: str) -> list[str]:
    """A chart for every detection whose rows have sizes."""
    drawn, findings = [], searched(record)
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
        cut = min(
            value for value in (detection["cut_size"], limit_of(record, "size_ratio") * median) if value is not None
        )
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
            marks.append((class_called(record, entry["target_class"]), float(finding.value), finding.verdict))
        if marks:
            rows.append((str(detection["detector"]), marks))
    return charts.index_chart(f"{prefix}indices", rows, limit=index_limit(record)) if rows else ""


def indices(record: Record) -> list[Row]:
    """One row per class, the most suspicious first; one cell per detector."""
    findings, limit = searched(record), index_limit(record)
    targets = {entry["target_class"] for detection in record.detections for entry in detection["classes"]}
    rows = []
    for target in sorted(targets, key=lambda value: (value is None, value)):
        found = [findings.get(item_of(detection, target)) for detection in record.detections]
        cells = [
            Cell() if entry is None else Cell(entry.value, entry.verdict, _heat(entry.value, limit)) for entry in found
        ]
        verdicts = [entry.verdict for entry in found if entry is not None]
        rows.append(
            Row(
                title=class_name(record, target),
                order=len(targets) if target is None else target,
                worst=next((verdict for verdict in WORST_FIRST if verdict in verdicts), Verdict.INCONCLUSIVE),
                cells=cells,
            )
        )
    return sorted(rows, key=lambda row: row.suspicion)


def _heat(index: float | None, limit: float) -> int:
    return sum((index or 0.0) > share * limit for share in _HEATS) if limit > 0 else 0


def sizes(record: Record) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of every detection that has sizes, each with its verdict."""
    findings = searched(record)
    tables = []
    for detection in record.detections:
        rows = []
        for entry in detection["classes"]:
            if entry["size"] is not None:
                finding = findings.get(item_of(detection, entry["target_class"]))
                verdict = finding.verdict if finding else Verdict.INCONCLUSIVE
                rows.append({**entry, "verdict": verdict, "rare": _rare(entry["p_value"])})
        if rows:
            tables.append((str(detection["detector"]), rows))
    return tables


def _rare(p_value: float | None) -> str:
    """A share of simulated models, not beyond what the shipped table tells."""
    if p_value is None:
        return "\u2013"
    least = min(PROBABILITIES)
    return f"below 1 in {1 / least:,.0f}" if p_value <= least else f"{p_value:.2g}"


def repairs(record: Record, prefix: str) -> list[Repair]:
    """Every repair that was tried, in the order of the record."""
    verdicts: dict[str, dict[str, Verdict]] = {}
    for finding in record.findings:
        verdicts.setdefault(finding.item.asked_of, {})[finding.item.question] = finding.verdict
    limit = record.settings.get("limits", {}).get("attack_success_rate")
    made = []
    for number, outcome in enumerate(record.repairs):
        method, curve = str(outcome["method"]), outcome["curve"]
        chosen = [point["prune_rate"] for point in curve if point["scores"] == outcome["after"]]
        made.append(
            Repair(
                outcome=outcome,
                title=f"{method}, class {class_name(record, outcome['target_class'])}",
                verdicts=verdicts.get(method, {}),
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


def repair_plot(record: Record, prefix: str) -> str:
    """All repairs in one chart; empty if none could be tried."""
    return repair_chart(
        f"{prefix}repairs-plot",
        record.repairs,
        success_limit=limit_of(record, "attack_success_rate"),
        drop_limit=limit_of(record, "clean_accuracy_drop"),
    )

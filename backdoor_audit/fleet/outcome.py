"""What came of each model, from its record and the exit code of its gate: nothing but a whole record that passes is a pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.fleet.depends import key
from backdoor_audit.fleet.models import Model
from backdoor_audit.fleet.results import Job, Manifest, Results
from backdoor_audit.report.naming import classes_called
from backdoor_audit.report.terminal import headline

ERROR = "not audited"
STATES = (Verdict.FAIL.value, Verdict.INCONCLUSIVE.value, ERROR, Verdict.PASS.value)
"""How a model can stand, the worst first."""

FALSE_DISCOVERIES = 0.05
"""Among the models that the fleet's correction calls suspicious, at most this share is expected to be clean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model of the fleet.

    ``p_value`` is the probability that the detectors of a run find something as extreme in a clean model, ``corrected`` the
    least share of false discoveries at which the fleet would call it suspicious; None where nothing was measured. ``index``
    is the largest anomaly index.
    """

    name: str
    file: str
    state: str
    reason: str
    evidence: bool = False
    flagged: str = ""
    suspected: str = ""
    p_value: float | None = None
    corrected: float | None = None
    index: float | None = None
    architecture: str = ""
    seconds: float = 0.0
    attempts: int = 0
    rates: Sequence[str] = ()


def finished(job: Job | None, wanted: str, results: Results) -> bool:
    """Whether an audit with this key is done, and its record whole: it need not be done again, whatever it found."""
    if job is None or job.key != wanted or job.exit_code not in (0, 1):
        return False
    record = results.record(job)
    return record is not None and not record.errors and not record.not_run and bool(record.findings)


def row_of(model: Model, job: Job | None, record: Record | None) -> Row:
    """How one model stands; without a word of how its audit ended, and without a record, it was not audited."""
    if job is None:
        return Row(name=model.name, file=str(model.file), state=ERROR, reason="there is no audit of it")
    row = Row(
        name=model.name,
        file=str(model.file),
        state=ERROR,
        reason=job.told or "its record is not the one that its audit left",
        seconds=job.seconds,
        attempts=job.attempts,
    )
    if record is None:
        return row
    state, reason = record.verdict, headline(record)
    if state is Verdict.PASS and not (job.exit_code == 0 and record.passes_gate):
        state, reason = Verdict.INCONCLUSIVE, f"its record passes, but the gate ended with exit code {job.exit_code}"
    values = [finding.value for finding in record.findings if finding.statistic == "anomaly_index"]
    return replace(
        row,
        state=state.value,
        reason=reason,
        evidence=True,
        flagged=classes_called(record, record.flagged_classes, all_to_all=record.flagged_all_to_all),
        suspected=classes_called(record, record.suspected_classes, all_to_all=record.suspected_all_to_all),
        p_value=run_p_value(record),
        index=max((value for value in values if value is not None), default=None),
        architecture=str(record.subject.get("architecture", "")),
        rates=tuple(record.rates),
    )


def rows_of(results: Results, manifest: Manifest, models: Iterable[Model]) -> list[Row]:
    """Every model of the fleet, the most suspicious first. A record of other images, options or code is none of this fleet."""
    rows = []
    for model in models:
        job = results.job(model.name)
        row = row_of(model, job, results.record(job) if job else None)
        reason = _not_of_this_fleet(job, manifest, model) if job else ""
        rows.append(replace(row, state=ERROR, reason=reason, p_value=None) if reason else row)
    return ranked(rows)


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows by suspicion, with their corrected p-values."""
    measured = [row.p_value for row in rows if row.p_value is not None]
    shares = iter(benjamini_hochberg(measured))
    corrected = [row if row.p_value is None else replace(row, corrected=next(shares)) for row in rows]
    return sorted(
        corrected,
        key=lambda row: (
            STATES.index(row.state),
            1.0 if row.p_value is None else row.p_value,
            -(row.index or 0.0),
            row.name,
        ),
    )


def run_p_value(record: Record) -> float | None:
    """The smallest p-value of the detectors, times their number (Bonferroni), at most 1; None if none has an answer."""
    found = [
        float(entry["p_value"])
        for entry in record.detections
        if entry.get("p_value") is not None and not entry.get("inconclusive")
    ]
    return min(1.0, len(found) * min(found)) if found else None


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """For each p-value the least share of false discoveries at which it is one (Benjamini and Hochberg, JRSS B 1995)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place], reverse=True)
    corrected, least = [1.0] * len(p_values), 1.0
    for rank, place in zip(range(len(order), 0, -1), order, strict=True):
        least = min(least, p_values[place] * len(order) / rank)
        corrected[place] = least
    return corrected


def _not_of_this_fleet(job: Job, manifest: Manifest, model: Model) -> str:
    if job.settings != manifest.settings:
        return "its record is of other images, options or code; audit it again"
    if Path(model.file).exists() and key(model, job.settings) != job.key:
        return "the model, or the config.json beside it, is another one than was audited; audit it again"
    return ""

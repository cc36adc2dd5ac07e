"""How a run with a baseline ends: what stops it, what is accepted, and what the baseline becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from backdoor_audit.baseline.acceptance import ACCEPTED, Acceptance
from backdoor_audit.baseline.difference import REGRESSIONS, Difference, change_between, side
from backdoor_audit.baseline.signature import Baseline, baseline_of, signature_of
from backdoor_audit.errors import BaselineError
from backdoor_audit.evidence import REGRESSION, Finding, Record, Verdict, judge
from backdoor_audit.printable import listed

_SHOWN = 4  # findings told by name


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a finding that is not a pass is answered for; ``text`` says by whom, or why not. It is empty if nobody said so."""

    accepted: bool = False
    text: str = ""
    acceptance: Acceptance | None = None


def standing(baseline: Baseline, finding: Finding, today: date) -> Standing:
    """Whether a finding is accepted: by an acceptance that is still in force, for what is in the baseline and no worse now."""
    matching = [entry for entry in baseline.acceptances if entry.matches(finding.audit)]
    if finding.verdict is Verdict.PASS or not matching:
        return Standing()
    last = max(matching, key=lambda entry: entry.expires)
    if last.expired(today):
        return Standing(
            False, f"the acceptance by {last.owner} expired on {last.expires} (its reason: {last.reason})", last
        )
    change = change_between(finding.audit, baseline.findings.get(finding.audit), signature_of(finding), baseline)
    if side(change) > 0:
        return Standing(False, f"worse than what {last.owner} accepted until {last.expires}: {change.text}", last)
    return Standing(True, last.text, last)


def regressions(difference: Difference) -> dict[str, Finding | str]:
    """For each of `REGRESSIONS` a finding, which fails if anything is worse, or why there is none."""
    return {name: _regression(difference, name) for name in REGRESSIONS}


def _regression(difference: Difference, name: str) -> Finding | str:
    worse = [change for change in difference.worse if change.regression == name]
    reason = difference.reason(name)
    if not worse and not difference.compared(name):
        return reason
    classes = {change.target_class for change in worse}
    return judge(
        REGRESSION,
        float(len(worse)),
        at_most=0.0,
        reason=reason,
        target_class=classes.pop() if len(classes) == 1 else None,
        details={"compared": difference.compared(name), "worse": [change.item for change in worse]},
    )


def section(file: str, baseline: Baseline, record: Record, difference: Difference, today: date) -> dict[str, Any]:
    """What a record keeps about its baseline, in builtins.

    ``verdict`` is that of the run: fail if anything is worse or a finding fails that is not accepted, inconclusive if one that
    is not accepted could not be measured or the run was not whole. ``unused`` are acceptances that no finding needs any more.
    """
    stopping, unfinished = _stopping(record), [*record.errors, *record.not_run]
    rulings = [(finding, standing(baseline, finding, today)) for finding in stopping]
    left = [finding.verdict for finding, ruling in rulings if not ruling.accepted]
    verdict = Verdict.PASS
    if difference.worse or Verdict.FAIL in left:
        verdict = Verdict.FAIL
    elif left or unfinished:
        verdict = Verdict.INCONCLUSIVE
    return {
        "file": Path(file).name,
        "accepted_model": baseline.model["file"] or baseline.model["model_fingerprint"],
        "verdict": verdict.value,
        "worse": [change.text for change in difference.worse],
        "better": [change.text for change in difference.better],
        "notes": list(difference.notes),
        "accepted": [_told(finding, ruling) for finding, ruling in rulings if ruling.accepted],
        "expired": [
            _told(finding, ruling)
            for finding, ruling in rulings
            if ruling.acceptance and ruling.acceptance.expired(today)
        ],
        "unused": []
        if unfinished
        else [entry.finding for entry in baseline.acceptances if not _needed(entry, stopping)],
    }


def renewed(record: Record, previous: Baseline | None, today: date) -> tuple[Baseline, list[str]]:
    """The baseline of a record, and what to tell whoever asked for it.

    Acceptances of ``previous`` stay as long as they are in force and a finding needs them. A baseline excuses nothing: findings
    that are not a pass stop every later run until somebody accepts them in the file. Raises `BaselineError` for a record
    that is not whole, and for one with such findings that ``previous`` has as passed and nobody accepted.
    """
    unfinished = [*record.errors, *record.not_run]
    if unfinished or not record.findings:
        raise BaselineError(
            f"no baseline of this run: {len(unfinished)} items broke or were not run"
            f"{f', first {unfinished[0]}' if unfinished else ''}; only a whole run can be accepted"
        )
    stopping = _stopping(record)
    offered = previous.acceptances if previous else ()
    kept = [entry for entry in offered if not entry.expired(today) and _needed(entry, stopping)]
    left = [finding.audit for finding in stopping if not any(entry.matches(finding.audit) for entry in kept)]
    if previous is not None:
        _refuse_new(left, previous)
    lines = [
        f"acceptance of {entry.finding} dropped: {_dropped(entry, today)}" for entry in offered if entry not in kept
    ]
    if left:
        lines.append(
            f"{len(left)} findings are not a pass and not accepted, so they stop every run: {listed(left, _SHOWN)}; "
            f"to accept one, add {ACCEPTED} to acceptances"
        )
    return replace(baseline_of(record), acceptances=tuple(kept)), lines


def _refuse_new(left: Sequence[str], previous: Baseline) -> None:
    new = [audit for audit in left if previous.findings.get(audit, {"verdict": "pass"})["verdict"] == "pass"]
    if new:
        raise BaselineError(
            f"the baseline was not updated: {len(new)} findings are not a pass that passed in it or are new: "
            f"{listed(new, _SHOWN)}; accept them by hand, add {ACCEPTED} to its acceptances, and update again"
        )


def _stopping(record: Record) -> list[Finding]:
    """The findings about this model that stop a run without a baseline."""
    allowed = {Verdict.PASS}
    if record.settings.get("inconclusive") == "allow":
        allowed.add(Verdict.INCONCLUSIVE)
    return [entry for entry in record.findings if entry.statistic != REGRESSION and entry.verdict not in allowed]


def _needed(acceptance: Acceptance, findings: Sequence[Finding]) -> bool:
    return any(acceptance.matches(finding.audit) for finding in findings)


def _dropped(acceptance: Acceptance, today: date) -> str:
    return f"it expired on {acceptance.expires}" if acceptance.expired(today) else "no finding needs it"


def _told(finding: Finding, ruling: Standing) -> dict[str, str]:
    entry = ruling.acceptance
    return {**(entry.to_json() if entry else {}), "finding": finding.audit, "verdict": finding.verdict.value}

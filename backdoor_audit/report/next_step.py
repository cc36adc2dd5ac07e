"""What to type next after a run, and why: one command that follows from its record."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backdoor_audit.evidence import REGRESSION, Finding, Record, Verdict
from backdoor_audit.options import AuditOptions
from backdoor_audit.report.paths import RECORD
from backdoor_audit.report.reproduction import repair_command, reproduction_command
from backdoor_audit.search.anomaly import MIN_CLASSES

_OPTION = r"--(?:audit-)?(?:class-names|class-order|mean|std|normalization|resize|channels)"
_VALUE = r"""(?:'[^']*'|"'"|[\w.:/%+@=-]|,(?=\S))+"""  # a shell takes it as it stands: names in it may be a stranger's
_ADVICE = re.compile(rf"\bpass ({_OPTION}={_VALUE}(?: {_OPTION}={_VALUE})*)(?=[\s,;]|$)(?! if )")  # none that depends


def next_step(record: Record) -> tuple[str, str]:
    """The command, and what it is for; two empty texts where nothing is left to do, or no command line can say it.

    Files of the run are named as its options name them; a caller that shows the command to others shortens them first.
    """
    settings = record.settings
    if not reproduction_command(record):
        return "", ""
    if record.verdict is Verdict.FAIL:
        return _after_fail(record)
    if record.verdict is Verdict.INCONCLUSIVE:
        return _after_inconclusive(record)
    if not settings.get("canary"):
        return _again(record, canary=True), "would this audit have found a backdoor planted in this model?"
    if not settings.get("baseline"):
        keep = {"baseline": "baseline.json", "update_baseline": True}
        return _again(record, **keep), "keep this model as the accepted one, and compare the next with it"
    return "", ""


def _after_fail(record: Record) -> tuple[str, str]:
    settings = record.settings
    worse = [entry for entry in record.findings if entry.verdict is Verdict.FAIL]
    if record.flagged_classes:
        return repair_command(
            record
        ), "a repaired copy, audited again before it is kept; the safer way is another source"
    if worse and all(entry.statistic == REGRESSION for entry in worse) and settings.get("baseline"):
        folder = str(settings.get("report") or AuditOptions().report)
        files = [str(settings["baseline"]), f"{folder}/{RECORD}"]
        return shlex.join(["backdoor-audit", "compare", *files, "--out=difference.html"]), "what got worse, drawn"
    return _deeper(record)


def _after_inconclusive(record: Record) -> tuple[str, str]:
    reasons = [entry.reason for entry in record.findings if entry.verdict is Verdict.INCONCLUSIVE]
    unmet = [entry.reason for entry in unmet_preconditions(record)]
    partial = bool(record.errors or record.not_run)
    for reason in unmet if partial else reasons:
        if advised := _ADVICE.search(reason):
            return f"{_again(record)} {advised[1]}", "what the reason above advises"
    if unmet:
        return _again(record), "once the reason above is dealt with"
    if partial:
        return _again(record, budget=0.0), "the whole audit; finished work is kept"
    return _after_searches(record, reasons)


def _after_searches(record: Record, reasons: Sequence[str]) -> tuple[str, str]:
    if any("--audit-budget" in reason for reason in reasons):
        return _again(record, budget=0.0), "without the bound on time; finished work is kept"
    if any("--audit-steps" in reason for reason in reasons):
        return _again(record, steps=2 * int(record.settings.get("steps", AuditOptions().steps))), "twice the steps"
    if record.suspected_classes or record.suspected_all_to_all or record.power not in (None, Verdict.PASS):
        return _deeper(record)
    return few_classes(record) or (_again(record), "once the reason above is dealt with")


def unmet_preconditions(record: Record) -> list[Finding]:
    """Why the model cannot be judged with these images: what comes before all searches and is not a pass."""
    return [
        entry
        for entry in record.findings
        if entry.item.question == "precondition" and entry.verdict is not Verdict.PASS
    ]


def few_classes(record: Record) -> tuple[str, str] | None:
    """What to type where no class can be told from so few others, and why; None elsewhere.

    The quick profile judges nothing of such a model. What the others judge is for a person to read, who may allow the rest.
    """
    count = record.subject.get("num_classes", MIN_CLASSES)
    if count >= MIN_CLASSES or record.verdict is not Verdict.INCONCLUSIVE:
        return None
    if record.settings.get("profile") == "quick":
        why = f"{count} classes are too few to compare with each other; the standard profile judges them by their properties"
        return _again(record, profile="standard"), why
    why = (
        f"{count} classes are too few to compare with each other, so no run of this model ends as a pass; once a person has "
        "read what the properties say, this lets the rest through"
    )
    return _again(record, inconclusive="allow"), why


def _deeper(record: Record) -> tuple[str, str]:
    """The next profile, or other images and random numbers where there is none."""
    profile = str(record.settings.get("profile", "standard"))
    deeper = {"quick": "standard", "standard": "thorough"}.get(profile)
    if deeper:
        return _again(record, profile=deeper), "more detectors and repairs, longer searches"
    return _again(record, seed=int(record.settings.get("seed", 0)) + 1), "another split of the images"


def _again(record: Record, **changed: Any) -> str:
    return reproduction_command(replace(record, settings={**record.settings, **changed}))

"""The closing section in the terminal: the verdict in words, then what is not a pass, then what was not tested."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from backdoor_audit.evidence import POWER, REGRESSION, Finding, Record, Verdict

_WIDTH = 110  # columns
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # no line begins inside of a word

Line = tuple[str, dict[str, bool]]


def summary_lines(record: Record) -> list[Line]:
    """Lines with their markup, in the order in which they are printed."""
    colours = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
    lines: list[Line] = [(headline(record), {colours[record.verdict]: True, "bold": True})]
    lines += [(f"  measured: {text}", {}) for text in record.rates]
    lines += [(f"  canary: {reason}", {"green": True}) for reason in canaries_seen(record)]
    for finding in record.findings:
        if finding.verdict is Verdict.PASS:
            continue
        value = ""
        if finding.value is not None and finding.limit is not None:
            value = f" [{finding.statistic} {finding.value:.3g}, limit {finding.limit:.3g}]"
        lines.append((f"  {finding.verdict.value}: {finding.reason}{value}", {colours[finding.verdict]: True}))
        lines.append((f"      {finding.audit}", {}))
    lines += _beside_baseline(record)
    lines += [(f"  broken: {name}: {reason}", {"red": True}) for name, reason in record.errors.items()]
    if record.not_run:
        lines.append((f"  not run: {len(record.not_run)} items, first {record.not_run[0]}", {"yellow": True}))
    for reason, count in _counted(record.skipped.values()):
        lines.append((f"  skipped: {count} items: {reason}", {}))
    for detection in record.detections:
        recalled = ", taken from an earlier run" if detection.get("recalled") else ""
        lines.append(
            (
                f"  {detection['detector']}: {_classes(detection)} classes, {detection.get('image_passes', 0)} image passes, "
                f"{detection.get('seconds', 0):.0f} s{recalled}",
                {},
            )
        )
    for text in record.not_tested:
        wrapped = textwrap.wrap(
            f"not tested: {text}", _WIDTH, initial_indent="  ", subsequent_indent="      ", **_WHOLE_WORDS
        )
        lines += [(line, {}) for line in wrapped]
    return lines


def _beside_baseline(record: Record) -> list[Line]:
    """What the accepted model was like beside this one, and who answers for what."""
    if not record.baseline:
        return []
    kept = record.baseline
    counts = f"{len(kept['worse'])} worse, {len(kept['better'])} better"
    head = f"  baseline {kept['file']} ({kept.get('accepted_model', '')}): {counts}"
    lines: list[Line] = [(head, {"red": bool(kept["worse"])})]
    lines += [(f"    worse: {text}", {"red": True}) for text in kept["worse"]]
    for name, markup in (("accepted", {}), ("expired", {"red": True})):
        lines += [
            (f"    {name}: {entry['finding']}: by {entry['owner']} until {entry['expires']}: {entry['reason']}", markup)
            for entry in kept[name]
        ]
    lines += [(f"    not needed any more: acceptance of {text}", {}) for text in kept.get("unused", ())]
    return [*lines, *((f"    note: {text}", {}) for text in kept.get("notes", ()))]


def _classes(detection: Mapping[str, Any]) -> int:
    """How many classes a detector looked at; a row for all-to-all is none."""
    return sum(score.get("target_class") is not None for score in detection.get("classes", ()))


def headline(record: Record) -> str:
    """The verdict in one line of words."""
    if record.baseline and record.verdict is not Verdict.PASS and record.baseline["verdict"] == "pass":
        return f"ACCEPTED: nothing is worse than in {record.baseline['file']}, and somebody answers for what is no pass"
    if record.verdict is Verdict.PASS:
        return "PASS: no hidden trigger found by the tests that were run (what they do not see: below)"
    if record.verdict is Verdict.INCONCLUSIVE:
        return f"INCONCLUSIVE: {_why_inconclusive(record)}"
    return f"FAIL: {_why_failed(record)}"


def _why_failed(record: Record) -> str:
    if record.flagged_classes:
        return f"hidden trigger found for {_called(record, record.flagged_classes)}"
    if record.flagged_all_to_all:
        return "hidden trigger found that sends every class to another"
    failed = [entry for entry in record.findings if entry.verdict is Verdict.FAIL and entry.statistic != POWER]
    if all(finding.statistic == REGRESSION for finding in failed):
        return f"inside the limits, but worse than {_accepted(record, failed)}"
    return "a limit was exceeded"


def _accepted(record: Record, worse: Iterable[Finding]) -> str:
    """The file of the accepted model, and the classes that got worse."""
    file = record.baseline["file"] if record.baseline else "the accepted model"
    classes = tuple(sorted({entry.target_class for entry in worse if entry.target_class is not None}))
    return f"{file}: {_called(record, classes)}" if classes else str(file)


def _why_inconclusive(record: Record) -> str:
    if record.suspected_classes:
        return f"suspicious trigger for {_called(record, record.suspected_classes)}; not a clean result"
    if record.suspected_all_to_all:
        return "suspicious trigger that sends every class to another; not a clean result"
    if record.power not in (None, Verdict.PASS) and not record.errors and not record.not_run and _silent(record):
        missed = (
            "a planted one was not found either" if record.power is Verdict.FAIL else "none could be planted to compare"
        )
        return f"no hidden trigger found, but {missed}; this silence is not a clean result"
    measured = all(finding.verdict is Verdict.PASS for finding in record.findings) and not record.errors
    if measured and record.not_run:
        return f"{len(record.not_run)} items were not run; only a whole run can pass a model"
    return "this model could not be judged; that is not a clean result"


def _silent(record: Record) -> bool:
    """Whether every finding about the model itself is a pass."""
    return all(finding.verdict is Verdict.PASS for finding in record.findings if finding.statistic != POWER)


def canaries_seen(record: Record) -> list[str]:
    """What the summary says about canaries that were found; missed ones stand among the findings that are no pass."""
    return [entry.reason for entry in record.findings if entry.statistic == POWER and entry.verdict is Verdict.PASS]


def _called(record: Record, classes: tuple[int, ...]) -> str:
    names = record.subject.get("class_names") or []
    called = [f"{k} ({names[k]})" if k < len(names) else str(k) for k in classes]
    return f"class{'es' * (len(called) > 1)} {', '.join(called)}"


def _counted(reasons: Iterable[str]) -> list[tuple[str, int]]:
    return list(Counter(reasons).items())

"""The closing section in the terminal: verdict, trigger, evidence, remedies, what was not tested, what to do next, the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from backdoor_audit.evidence import POWER, REGRESSION, Finding, Record, Verdict
from backdoor_audit.report.asked import compared_with, own_limits
from backdoor_audit.report.naming import classes_called
from backdoor_audit.report.next_step import next_step
from backdoor_audit.report.others import other_parts
from backdoor_audit.report.weighed import Weighed, evidence, remedies, skipped, trigger_sentence

WIDEST = 110
"""Columns of a line, of a wider terminal as well."""

_LEAST = 60
_MOST_SUBJECTS = 12  # of a model with very many classes; the page has all
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # no line begins inside of a word
_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}

Line = tuple[str, dict[str, bool]]


def summary_lines(record: Record, *, width: int = WIDEST, told: Sequence[str] = (), page: str = "") -> list[Line]:
    """Lines with their markup, in the order in which they are printed; each thing is said once, and whole.

    ``told`` is what went wrong beside the audit, and ``page`` the file to open.
    """
    columns = max(_LEAST, min(width, WIDEST))
    lines: list[Line] = [(headline(record), {_COLOURS[record.verdict]: True, "bold": True})]
    if sentence := trigger_sentence(record):
        found = "Trigger" if record.verdict is Verdict.FAIL else "Suspected trigger"
        lines += _wrapped(f"{found}: {sentence}", columns)
    lines += _evidence(record, columns)
    lines += _beside_baseline(record)
    lines += _remedies(record, columns)
    lines += _not_tested(record, columns)
    command, purpose = next_step(record)
    if command:
        lines += [("", {}), (f"Next: {command}", {"bold": True}), *_wrapped(f"({purpose})", columns, "      ")]
    lines += [line for text in told for line in _wrapped(text, columns)]
    if page:
        lines.append((f"Page: {page}", {}))
    return lines


def last_line(record: Record, exit_code: int, beside: str = "something else") -> Line:
    """What stands below everything that pytest prints: the verdict, and what the process ends with.

    ``beside`` is what may have failed a run whose record passes.
    """
    verdict = headline(record).partition(" (what they")[0]
    if exit_code and record.passes_gate:
        return f"{verdict}, but this run failed by {beside} [exit code {exit_code}]", {"red": True, "bold": True}
    return f"{verdict} [exit code {exit_code}]", {_COLOURS[record.verdict]: True, "bold": True}


def _evidence(record: Record, columns: int) -> list[Line]:
    """What speaks against the model, by strength; then what its silence is worth."""
    found = evidence(record)
    lines: list[Line] = [("", {}), ("Evidence, the strongest first:", {})] if found else []
    for weighed in found[:_MOST_SUBJECTS]:
        lines += _subject(weighed, columns)
    if len(found) > _MOST_SUBJECTS:
        lines += _wrapped(f"and {', '.join(weighed.subject for weighed in found[_MOST_SUBJECTS:])}", columns, "  ")
    lines += _items_without_answer(record, columns)
    sight = [f"canary: {reason}" for reason in canaries_seen(record)] + [f"measured: {text}" for text in record.rates]
    if sight or record.detections or own_limits(record):
        lines += [("", {}), ("What this verdict rests on:", {})]
    others = [f"parts of other packages: {text}" for text in [other_parts(record)] if text]
    beside = [f"compared with: {text}" for text in [compared_with(record)] if text]
    changed = [f"limits of your own: {text}" for text in [own_limits(record)] if text]
    for text in (*sight, *beside, *changed, *_searches(record), *others):
        lines += _wrapped(text, columns, "  ")
    return lines


def _subject(weighed: Weighed, columns: int) -> list[Line]:
    colour = {_COLOURS[weighed.verdict]: True}
    lines: list[Line] = [(f"  {weighed.subject}: {weighed.verdict.value}", colour)]
    for point in weighed.points:
        differs = f"{point.verdict.value}, " if point.verdict is not weighed.verdict else ""
        number = f" ({differs}{point.number})" if point.number else f" ({differs.rstrip(', ')})" if differs else ""
        lines += _wrapped(f"{point.called}{number}: {point.text}", columns, "    ")
    return lines


def _items_without_answer(record: Record, columns: int) -> list[Line]:
    lines: list[Line] = []
    for name, reason in record.errors.items():
        lines += _wrapped(f"broken: {name}: {reason}", columns, "  ", red=True)
    if record.not_run:
        lines.append((f"  not run: {len(record.not_run)} items, first {record.not_run[0]}", {"yellow": True}))
    return lines


def _searches(record: Record) -> list[str]:
    """What was searched for, and at which price."""
    if not record.detections:
        return []
    passes = sum(int(entry.get("image_passes", 0)) for entry in record.detections)
    recalled = [str(entry["detector"]) for entry in record.detections if entry.get("recalled")]
    kept = f"; taken from an earlier run: {', '.join(recalled)}" if recalled else ""
    count = len(record.detections)
    return [f"{count} search{'es' * (count > 1)}, {passes:,} image passes, {record.seconds:.0f} s for the run{kept}"]


def _remedies(record: Record, columns: int) -> list[Line]:
    tried = remedies(record)
    lines: list[Line] = [("", {}), ("Remedies, measured on copies and held-out images:", {})] if tried else []
    for remedy in tried:
        text = f"{remedy.name} {'holds' if remedy.holds else 'does not hold'}: {', '.join(remedy.numbers)}"
        lines += _wrapped(text, columns, "  ", **({"green": True} if remedy.holds else {}))
    return lines


def _not_tested(record: Record, columns: int) -> list[Line]:
    lines: list[Line] = []
    for reason, count in skipped(record):
        lines += _wrapped(f"{count} item{'s' * (count > 1)}: {reason}", columns, "  ")
    for text in record.not_tested:
        lines += _wrapped(text, columns, "  ")
    return [("", {}), ("Not tested:", {}), *lines] if lines else []


def _wrapped(text: str, columns: int, indent: str = "", **markup: bool) -> list[Line]:
    rows = textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=f"{indent}    ", **_WHOLE_WORDS)
    return [(row, markup) for row in rows]


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


def headline(record: Record) -> str:
    """The verdict in one line of words."""
    if record.baseline and record.verdict is not Verdict.PASS and record.baseline["verdict"] == "pass":
        return (
            f"ACCEPTED: nothing is worse than in {record.baseline['file']}, and somebody answers for what is not a pass"
        )
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
    """What the summary says about canaries that were found; missed ones stand among the findings that are not a pass."""
    return [entry.reason for entry in record.findings if entry.statistic == POWER and entry.verdict is Verdict.PASS]


def _called(record: Record, classes: tuple[int, ...]) -> str:
    return f"class{'es' * (len(classes) > 1)} {classes_called(record, classes)}"

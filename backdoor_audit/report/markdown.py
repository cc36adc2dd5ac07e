"""The record as Markdown for a pull request or a job summary: the verdict, what is not a pass, what was not tested."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from backdoor_audit.evidence import WORST_FIRST, Finding, Record, Verdict
from backdoor_audit.report.asked import own_limits
from backdoor_audit.report.next_step import next_step
from backdoor_audit.report.others import other_parts
from backdoor_audit.report.paths import shown_command, shown_files, shown_path, without_folders
from backdoor_audit.report.sarif import acceptance, accepted
from backdoor_audit.report.terminal import canaries_seen, headline
from backdoor_audit.report.weighed import trigger_sentence
from backdoor_audit.report.words import about
from backdoor_audit.words import About

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
MOST_LINES = 50  # of a table or a list: a job summary holds 1 MiB, a comment 65,536 characters; the record holds all

_WIDTH = 140  # px of a picture

_SIGNS = {Verdict.PASS: "✅", Verdict.FAIL: "❌", Verdict.INCONCLUSIVE: "⚠️"}
_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_REFERENCE = re.compile(r"[@#!%~&:](?=[\w/])|/(?=/)|(?<=[wW]{3})(?=\.)|\bGH(?=-\d)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "<span>$</span>"}  # two dollars make a formula
_BREAK = "\u200b"  # zero width space: the next character no longer makes a mention, a reference or a link


def markdown(record: Record, *, pictures: Sequence[str] = ()) -> str:
    """GitHub-flavoured Markdown of one record, at most a few thousand characters.

    ``pictures`` are files to show, by their path from where the text lies; a text that lies elsewhere shows none.
    Everything that comes from a file (class names, paths, reasons) is escaped: it makes no table cell, no HTML, no link and
    mentions nobody. Paths outside the folder of the run are named without their folders.
    """
    open_findings = [entry for entry in record.findings if entry.verdict is not Verdict.PASS]
    parts = [
        f"## {_SIGNS[record.verdict]} Backdoor audit of {code(shown_path(str(record.subject.get('model', ''))) or 'a module')}",
        f"**{escaped(headline(record))}**",
        *(
            escaped(without_folders(f"{_found(record)}: {sentence}"))
            for sentence in [trigger_sentence(record)]
            if sentence
        ),
        _shown(pictures),
        *(escaped(f"Canary: {reason}") for reason in canaries_seen(record)),
        _findings(record, open_findings, accepted(record)),
        _bullets([*_incomplete(record), *_baseline(record), *_others(record), *_limits(record)]),
        _next(record),
        _folded(f"Not tested ({len(record.not_tested)})", _bullets(map(escaped, record.not_tested))),
        _folded("Cost", _cost(record)),
        _folded("Make it again", f"{_again(record)}\n\n{_provenance(record)}"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _limits(record: Record) -> list[str]:
    return [f"Limits of your own: {escaped(text)}" for text in [own_limits(record)] if text]


def append_step_summary(record: Record, environment: Mapping[str, str]) -> Path | None:
    """Append the Markdown to the file that ``GITHUB_STEP_SUMMARY`` names in ``environment``; None where it names none.

    Raises `OSError` if the file cannot be written, or is a pipe that nobody reads.
    """
    if not environment.get(STEP_SUMMARY):
        return None
    file = environment[STEP_SUMMARY]
    content = (markdown(record) + "\n").encode("utf-8", "backslashreplace")
    opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    with os.fdopen(opened, "wb", buffering=0) as summary:  # in one piece: other steps append to the same file
        if summary.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return Path(file)


def escaped(text: str) -> str:
    """Text as literal Markdown on one line: no emphasis, table cell, HTML, link, mention or reference comes out of it."""
    flat = _SPECIAL.sub(r"\\\1", _REFERENCE.sub(lambda found: found.group() + _BREAK, " ".join(text.split())))
    flat = "".join(_HTML.get(character, character) for character in flat)
    return re.sub(r"^([-+=#]|\d+(?=[.)]\s))", lambda found: f"{_BREAK}{found.group()}", flat)


def code(text: str) -> str:
    """Text as a code span that also holds inside a table cell."""
    flat = " ".join(text.split()).replace("|", r"\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if flat[:1] in ("`", "") or flat[-1:] == "`" else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def fenced(text: str) -> str:
    """Text as a code block."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _found(record: Record) -> str:
    return "Trigger" if record.verdict is Verdict.FAIL else "Suspected trigger"


def _shown(pictures: Sequence[str]) -> str:
    """Pictures as wide as eyes need; their names are ours."""
    return " ".join(
        f'<img src="{file}" width="{_WIDTH}" alt="{file.rpartition("/")[2].removesuffix(".png")}">' for file in pictures
    )


def _next(record: Record) -> str:
    command, purpose = next_step(shown_files(record))
    return f"**Next:** {escaped(purpose)}\n\n{fenced(command)}" if command else ""


def _findings(record: Record, findings: Sequence[Finding], accepted_: Mapping[str, str]) -> str:
    if not findings:
        return ""
    rows = [
        (
            finding.verdict.value + (", accepted" if finding.audit in accepted_ else ""),
            escaped(without_folders(finding.reason)),
            _number(finding.value),
            _number(finding.limit),
            code(finding.audit),
        )
        for finding in sorted(findings, key=partial(_first, record))[:MOST_LINES]
    ]
    table = _table(("verdict", "finding", "value", "limit", "item"), rows)
    more = len(findings) - MOST_LINES
    return f"{table}\n\nand {more} more in the record" if more > 0 else table


def _first(record: Record, finding: Finding) -> tuple[bool, int]:
    """Evidence before remedies, fails before what is inconclusive."""
    return about(record, finding) is About.REMEDY, WORST_FIRST.index(finding.verdict)


def _incomplete(record: Record) -> list[str]:
    """Items without an answer: broken, not run, skipped."""
    lines = [f"broken: {code(name)}: {escaped(without_folders(why))}" for name, why in record.errors.items()]
    if record.not_run:
        lines.append(f"not run: {len(record.not_run)} items, first {code(record.not_run[0])}")
    counts = Counter(record.skipped.values())
    return lines + [f"skipped: {count} items: {escaped(without_folders(why))}" for why, count in counts.items()]


def _baseline(record: Record) -> list[str]:
    """What the comparison with the accepted model says, worse things first."""
    baseline = record.baseline
    if not baseline:
        return []
    worse = [f"worse than the accepted model: {escaped(text)}" for text in baseline["worse"]]
    over = [
        f"acceptance expired: {code(entry['finding'])}: {escaped(acceptance(entry))}" for entry in baseline["expired"]
    ]
    held = [f"accepted: {code(entry['finding'])}: {escaped(acceptance(entry))}" for entry in baseline["accepted"]]
    whom = code(shown_path(str(baseline.get("accepted_model", ""))) or "a module")
    return [f"beside the accepted model {whom}: {escaped(baseline['verdict'])}", *worse, *over, *held]


def _others(record: Record) -> list[str]:
    return [f"parts of other packages: {escaped(text)}" for text in [other_parts(record)] if text]


def _cost(record: Record) -> str:
    rows = [
        (
            code(str(entry.get("detector", ""))),
            f"{entry.get('image_passes', 0):,}",
            f"{entry.get('seconds', 0):.0f}" + (", taken from an earlier run" if entry.get("recalled") else ""),
        )
        for entry in record.detections
    ]
    environment = record.environment
    device = f"{environment.get('device', 'unknown device')} ({environment.get('device_name', 'unnamed')})"
    total = f"{record.seconds:.0f} seconds in all on {escaped(device)}"
    return f"{_table(('detector', 'image passes', 'seconds'), rows)}\n\n{total}" if rows else total


def _again(record: Record) -> str:
    command = shown_command(record)
    return (
        fenced(command)
        if command
        else "The model or the images were handed over in Python; no command line names them."
    )


def _provenance(record: Record) -> str:
    subject, environment = record.subject, record.environment
    versions = ", ".join(f"{name} {environment.get(name, 'unknown')}" for name in ("backdoor_audit", "torch", "python"))
    rows = [
        ("model, SHA-256 of its tensors", code(str(subject.get("model_fingerprint", "unknown")))),
        ("clean images, SHA-256", code(str(subject.get("data_fingerprint", "unknown")))),
        ("images searched, held out", f"{subject.get('images_searched', 0)}, {subject.get('images_held_out', 0)}"),
        ("seed", code(str(record.settings.get("seed", "unknown")))),
        ("versions", code(versions)),
    ]
    return _table(("what", "value"), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    every = list(lines)
    shown = every[:MOST_LINES] + ([f"and {len(every) - MOST_LINES} more"] if len(every) > MOST_LINES else [])
    return "\n".join(f"* {line}" for line in shown)


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>" if body else ""

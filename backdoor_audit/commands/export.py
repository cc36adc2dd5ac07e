"""``backdoor-audit export``: a record for other programs, from ``audit.json`` alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path

from backdoor_audit.commands.arguments import argument, declare_force, output_file, refuse_to_replace, write_out
from backdoor_audit.content import content_of
from backdoor_audit.errors import OptionError
from backdoor_audit.evidence import Record
from backdoor_audit.report.renderers import RENDERERS
from backdoor_audit.schema import schema

NAME = "export"
HELP = f"write a record in another form: {', '.join(renderer.name for renderer in RENDERERS)}"
_SCHEMA = "schema"
_STDOUT = Path("-")


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = (
        "Write AUDIT.json, the record of a run, in other forms: SARIF for code scanning, Markdown for a pull request, the page "
        "for people; `-` in place of a file is the terminal. Findings that the record's baseline accepts are marked as "
        "suppressed in SARIF."
    )
    parser.add_argument("record", nargs="?", type=Path, metavar="AUDIT.json", help="record of a run")
    forms = {renderer.name: renderer.what for renderer in RENDERERS} | {_SCHEMA: "the JSON schema of records"}
    for name, what in forms.items():
        parser.add_argument(f"--{name}", type=argument(output_file), metavar="FILE", help=f"write {what} here")
    declare_force(parser, "replace files that exist")


def run(options: argparse.Namespace) -> int:
    """Write what was asked for; always 0, whatever the verdict.

    Raises `AuditError` for a file that is no record, and for one that cannot be written; then nothing is written.
    """
    names = [*(renderer.name for renderer in RENDERERS), _SCHEMA]
    asked = {name: out for name in names if (out := getattr(options, name)) is not None}
    if not asked:
        raise OptionError(f"export: nothing to write; pass {', '.join(f'--{name}=FILE' for name in names)}")
    for name, out in asked.items():
        if out != _STDOUT:
            refuse_to_replace(out, force=options.force, name=name)
    texts = _rendered(options.record, asked)
    for name, out in asked.items():
        _write(name, out, texts[name])
    return 0


def _rendered(file: Path | None, asked: Collection[str]) -> dict[str, str]:
    texts = {_SCHEMA: json.dumps(schema(), indent=1) + "\n"}
    wanted = [renderer for renderer in RENDERERS if renderer.name in asked]
    if wanted:
        if file is None:
            raise OptionError("export: no record; give the audit.json of a run")
        record = Record.read(file)
        with content_of(str(file), record):
            texts |= {renderer.name: renderer.draw(record, folder=None, exit_code=None) for renderer in wanted}
    return texts


def _write(name: str, out: Path, text: str) -> None:
    if out == _STDOUT:
        sys.stdout.write(text)
        return
    write_out(out, text, name)

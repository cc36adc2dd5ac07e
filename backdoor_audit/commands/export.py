"""``backdoor-audit export``: a record for other programs, from ``audit.json`` alone."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from backdoor_audit.commands.arguments import argument, declare_force, output_file, refuse_to_replace, write_out
from backdoor_audit.content import content_of
from backdoor_audit.errors import OptionError
from backdoor_audit.evidence import Record
from backdoor_audit.report.markdown import markdown
from backdoor_audit.report.sarif import sarif
from backdoor_audit.schema import schema

NAME = "export"
HELP = "write a record as SARIF or Markdown"
_STDOUT = Path("-")
_FORMATS = ("sarif", "markdown", "schema")


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = (
        "Write AUDIT.json, the record of a run, as SARIF 2.1.0 for code scanning or as Markdown for a pull request; `-` in place "
        "of a file is the terminal. Findings that the record's baseline accepts are marked as suppressed."
    )
    parser.add_argument("record", nargs="?", type=Path, metavar="AUDIT.json", help="record of a run")
    parser.add_argument("--sarif", type=argument(output_file), metavar="FILE", help="write SARIF 2.1.0 here")
    parser.add_argument(
        "--markdown", type=argument(output_file), metavar="FILE", help="write GitHub-flavoured Markdown here"
    )
    parser.add_argument(
        "--schema", type=argument(output_file), metavar="FILE", help="write the JSON schema of records here"
    )
    declare_force(parser, "replace files that exist")


def run(options: argparse.Namespace) -> int:
    """Write what was asked for; always 0, whatever the verdict.

    Raises `AuditError` for a file that is no record, and for one that cannot be written; then nothing is written.
    """
    asked = {name: out for name in _FORMATS if (out := getattr(options, name)) is not None}
    if not asked:
        raise OptionError("export: nothing to write; pass --sarif=FILE, --markdown=FILE or --schema=FILE")
    for name, out in asked.items():
        if out != _STDOUT:
            refuse_to_replace(out, force=options.force, name=name)
    texts = _rendered(options.record, set(asked))
    for name, out in asked.items():
        _write(name, out, texts[name])
    return 0


def _rendered(file: Path | None, asked: set[str]) -> dict[str, str]:
    texts = {"schema": json.dumps(schema(), indent=1) + "\n"}
    if asked - set(texts):
        if file is None:
            raise OptionError("export: no record; give the audit.json of a run")
        record = Record.read(file)
        with content_of(str(file), record):
            texts["sarif"] = json.dumps(sarif(record), indent=1, allow_nan=False) + "\n"
            texts["markdown"] = markdown(record)
    return texts


def _write(name: str, out: Path, text: str) -> None:
    if out == _STDOUT:
        sys.stdout.write(text)
        return
    write_out(out, text, name)

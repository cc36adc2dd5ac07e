"""``backdoor-audit report``: the page for people, from ``audit.json`` alone."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from backdoor_audit.commands.arguments import declare_force, declare_out, refuse_to_replace, write_out
from backdoor_audit.evidence import Record
from backdoor_audit.printable import printable

NAME = "report"
HELP = "draw the page for people from one or more records"


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = (
        "Draw one self-contained HTML page from AUDIT.json, the record of a run. Several records make one page with an overview; "
        "those of one audit that was shared among machines (same model, images, settings and version) are put together first."
    )
    parser.add_argument("records", nargs="+", type=Path, metavar="AUDIT.json", help="record of a run; may be repeated")
    declare_out(parser, "where to write the page (HTML)")
    declare_force(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page; always 0, whatever the verdicts.

    Raises `AuditError` for a file that is no record, and for one that cannot be written; then nothing is written.
    """
    from backdoor_audit.report.html import page
    from backdoor_audit.report.shards import merged

    refuse_to_replace(options.out, options)
    names = _short_names(options.records)
    records = merged({name: Record.read(file) for name, file in zip(names, options.records, strict=True)})
    text = page(records)
    write_out(options.out, text)
    for name, record in records.items():
        print(printable(f"{record.verdict.value}: {name}"))
    print(printable(f"written: {options.out} ({len(text) / 1e6:.1f} MB)"))
    return 0


def _short_names(files: Sequence[Path]) -> list[str]:
    """How the page calls the files: their paths below the folder that they share."""
    whole = [file.absolute() for file in files]
    shared = Path(os.path.commonpath([file.parent for file in whole]))
    return [file.relative_to(shared).as_posix() for file in whole]

"""``backdoor-audit compare``: two models of the same configuration beside each other, from what their runs left on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from backdoor_audit.commands.arguments import argument, declare_force, output_file, refuse_to_replace, write_out
from backdoor_audit.printable import printable

NAME = "compare"
HELP = "print and draw what got worse between two audits, or since a baseline"
WORSE = 1


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = (
        "Compare the model of BEFORE with that of AFTER, each an audit.json or a baseline file, and print verdicts, accuracy, "
        "every anomaly index and every repair. Both must come from the same clean images and settings. Exit code 1 if something "
        "is worse beyond the noise between clean models, or if the run of AFTER was not whole."
    )
    parser.add_argument("before", type=Path, metavar="BEFORE.json", help="audit.json or baseline of the accepted model")
    parser.add_argument("after", type=Path, metavar="AFTER.json", help="audit.json or baseline of the other model")
    parser.add_argument(
        "--out", type=argument(output_file), metavar="FILE", help="draw the difference here as well (one HTML file)"
    )
    declare_force(parser)


def run(options: argparse.Namespace) -> int:
    """Print the difference, draw it if asked to; 1 if something is worse, or may be, as it was not measured.

    Raises `AuditError` for what cannot be compared.
    """
    from backdoor_audit.baseline import difference, read_signature, undecided_in
    from backdoor_audit.content import content_of
    from backdoor_audit.report.comparison_table import lines

    if options.out is not None:
        refuse_to_replace(options.out, options)
    before, after = read_signature(options.before), read_signature(options.after)
    before.refuse(after.configuration(), source=str(options.before))
    with content_of(f"{options.before}, {options.after}"):
        found = difference(before, after)
        table = "\n".join(lines(before, after, found))
    print(table)
    if options.out is not None:
        from backdoor_audit.report.comparison import page

        with content_of(f"{options.before}, {options.after}"):
            text = page(before, after, found)
        write_out(options.out, text)
        print(printable(f"written: {options.out}"))
    if undecided := undecided_in(options.after):
        print(
            printable(
                f"{options.after}: not a whole run: {len(undecided)} items broke or were not run, first {undecided[0]}; "
                "exit code 1"
            )
        )
    return WORSE if found.worse or undecided else 0

"""``backdoor-audit references``: reference networks made once, for all later audits on the same images."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from backdoor_audit.commands.arguments import declare_making, reading, refuse_to_replace, tell, writing
from backdoor_audit.options import AuditOptions

NAME = "references"
HELP = "train the reference networks of an architecture once, for many audits"


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = (
        "Train the reference networks for the architecture of each MODEL on the clean images, search them as the audit does, and "
        "write what later runs read by --audit-twins: any audit of a model of that architecture on these images, on any "
        "machine. The weights of MODEL are not used. Whoever can change the file can change verdicts: keep it with the images."
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path, help="a model file of each architecture")
    declare_making(parser, "where to write it (safetensors)")


def run(options: argparse.Namespace) -> int:
    """Make the file. Raises `AuditError` for wrong input."""
    from backdoor_audit.prepare import prepare
    from backdoor_audit.store import Store

    refuse_to_replace(options.out, options)
    settings = AuditOptions(data=options.data, seed=options.seed, **reading(options))
    with tempfile.TemporaryDirectory(prefix="backdoor_audit-") as scratch:
        store = Store(options.store or Path(scratch))
        made = prepare(options.models, settings, store=store, progress=True, tell=tell)
    with writing(options.out):
        made.save(options.out)
    count = len(made.architectures)
    tell(f"written: {options.out} ({count} architecture{'s' * (count > 1)}); use it with --audit-twins={options.out}")
    return 0

"""``backdoor-audit repair``: a repaired copy of a flagged model, proven before it is kept."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from backdoor_audit.commands.arguments import (
    declare_data,
    declare_out,
    declare_work,
    help_of,
    reading,
    refuse_to_replace,
    tell,
)
from backdoor_audit.options import AuditOptions

NAME = "repair"
HELP = "repair a flagged model and prove it"
REFUSED = 1


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    from backdoor_audit.repairs import REPAIRS

    names = ", ".join(entry.name for entry in REPAIRS)

    parser.description = (
        "Find the trigger of MODEL as the gate does, or take a known one, repair copies of it, and write the first "
        "whose success rate and accuracy on held-out images are inside the limits, once its file has been loaded and audited "
        "again. MODEL itself is not changed. Exit code 1 if nothing was written: no method held, or no trigger was found. "
        "Without --store, the work that a gate run left in this folder's pytest cache is used."
    )
    parser.add_argument(
        "model", metavar="MODEL", help="model to repair: a file or a Hugging Face folder, as the gate takes it"
    )
    declare_data(parser)
    parser.add_argument(
        "--method",
        default="auto",
        metavar="NAME",
        help=f"auto (distilled unlearning, FST, FT-SAM, then all), {names} (default: auto)",
    )
    declare_out(parser, "where to write it (safetensors)")
    parser.add_argument(
        "--trigger", default="", metavar="FILE", help="a known trigger, in place of those that are found"
    )
    parser.add_argument(
        "--profile",
        choices=("quick", "standard", "thorough"),
        default="standard",
        help="of the audits (default: standard)",
    )
    parser.add_argument("--twins", default="", metavar="FILE", help=help_of("twins"))
    declare_work(parser)


def run(options: argparse.Namespace) -> int:
    """Try repairs on a model, a line for each, and write the first that holds; exit code 1 if nothing was written.

    A model without a trigger that a repair can work against need not be a clean one, and what stood at ``out`` is another's.

    Raises `AuditError` for wrong input.
    """
    from backdoor_audit.repair import repair, summary
    from backdoor_audit.store import Store

    refuse_to_replace(options.out, options)
    settings = AuditOptions(
        model=options.model,
        data=options.data,
        seed=options.seed,
        trigger=options.trigger,
        profile=options.profile,
        twins=options.twins,
        **reading(options),
    )
    with tempfile.TemporaryDirectory(prefix="backdoor_audit-") as scratch:
        store = Store(options.store or _kept_by_gate() or Path(scratch))
        attempts = repair(settings, options.out, method=options.method, store=store, progress=True, tell=tell)
    tell(summary(attempts, options.out))
    return REFUSED if not attempts or attempts[-1].refused else 0


def _kept_by_gate() -> Path | None:
    """What `pytest --model` kept in this folder: a repair after a gate run searches nothing twice."""
    folder = Path(".pytest_cache", "d", "backdoor_audit")
    return folder if folder.is_dir() else None

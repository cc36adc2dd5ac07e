"""``backdoor-audit calibrate``: a null distribution fitted to one's own clean models."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from backdoor_audit.commands.arguments import declare_making, path, reading, refuse_to_replace, writing
from backdoor_audit.errors import OptionError
from backdoor_audit.options import AuditOptions
from backdoor_audit.printable import printable

NAME = "calibrate"
HELP = "calibrate the anomaly indices on your own clean models"


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = (
        "Measure every detector that needs reference models on each clean model file in a folder, and write the "
        "distribution that --audit-reference reads. At least ten models with the same classes."
    )
    parser.add_argument("--clean-models", required=True, type=path, metavar="DIR", help="folder of clean model files")
    declare_making(parser, "where to write it (JSON)")


def run(options: argparse.Namespace) -> int:
    """Fit a null distribution on a folder of clean models and write it. Raises `AuditError` for wrong input."""
    from backdoor_audit.calibrate import calibrate
    from backdoor_audit.model.loading.formats import SUFFIXES
    from backdoor_audit.model.loading.model_file import fingerprint_of
    from backdoor_audit.store import Store

    refuse_to_replace(options.out, options)
    if not os.path.isdir(options.clean_models):
        raise OptionError(f"--clean-models: {options.clean_models} is not a folder")
    models = sorted(file for file in options.clean_models.iterdir() if file.suffix.lower() in SUFFIXES)
    known: dict[str, Path] = {}
    for file in filter(os.path.isfile, models):
        same = known.setdefault(fingerprint_of(file), file)
        if same is not file:
            raise OptionError(
                f"--clean-models: {file} is a copy of {same.name}, which would count twice; take one away"
            )
    settings = AuditOptions(data=options.data, seed=options.seed, **reading(options))
    with tempfile.TemporaryDirectory(prefix="backdoor_audit-") as scratch:
        null = calibrate(models, settings, store=Store(options.store or Path(scratch)), progress=True)
    with writing(options.out):
        null.save(options.out)
    for name in null.fits:
        print(f"{name}: index 2 is a deviation of {null.cut(name, null.classes):.2f}")
    print(printable(f"written: {options.out} ({null.source}); use it with --audit-reference={options.out}"))
    return 0

"""The gate as a Python call."""

from __future__ import annotations

import tempfile
import time
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import OptionError
from backdoor_audit.evidence import Finding, Record
from backdoor_audit.model import surroundings
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.question import Skipped
from backdoor_audit.questions.record import judged_record
from backdoor_audit.questions.regression import beside_baseline, write_baseline
from backdoor_audit.questions.suite import Suite, suite_of
from backdoor_audit.run.run import Run
from backdoor_audit.store import Store
from backdoor_audit.words import About


def audit(
    model: nn.Module | str | Path,
    images: Any = None,
    labels: Any = None,
    *,
    class_names: tuple[str, ...] = (),
    store: str | Path | None = None,
    progress: bool = True,
    today: date | None = None,
    **options: Any,
) -> Record:
    """Audit a module or a model file and return the record that ``audit.json`` holds.

    ``images`` are uint8 (n, h, w, c) or (n, c, h, w), or floats in [0, 1]; ``labels`` are integers (n,). Leave both out and
    pass ``data="folder or .npz"`` to load them, of which ``class_names`` then are those of ``--audit-class-names``. Other
    options are the fields of `AuditOptions`. The module is not changed.
    Finished work is kept in ``store``, or dropped without one. Raises `AuditError` with one line for input that cannot
    be used.
    """
    unknown = sorted(set(options) - {entry.name for entry in fields(AuditOptions)})
    if unknown:
        raise OptionError(f"audit() has no option {unknown[0]!r}; options are the fields of AuditOptions")
    if (images is None) != (labels is None):
        raise OptionError("audit() takes images and labels together, or data=...")
    if images is None and not options.get("data"):
        raise OptionError("audit() needs clean images: pass images and labels, or data=...")
    began = time.perf_counter()
    if not isinstance(model, nn.Module):
        options["model"] = str(model)
    if images is None and class_names:
        if len(class_names) < 2 or any("," in name for name in class_names):
            raise OptionError("audit(): class_names are two or more texts without commas")
        options["class_names"] = ",".join(class_names)
    with tempfile.TemporaryDirectory() as scratch, surroundings.gradients():
        chosen = AuditOptions(**options)
        run = Run(
            chosen,
            Store(Path(store or scratch)),
            Suite.of(chosen),
            module=model if isinstance(model, nn.Module) else None,
            given_images=None if images is None else CleanSet.of(images, labels, class_names=class_names),
            progress=progress,
        )
        run.check()
        record, day = judged_record(run, shown=True), today or date.today()
        if run.options.update_baseline:
            write_baseline(run, record, day)
        if run.baseline is not None:
            record = _with_regressions(run, record, day)
        if changed := run.inputs.changed():
            record = replace(record, errors={**record.errors, "audit": changed})
    return replace(record, seconds=time.perf_counter() - began)


def _with_regressions(run: Run, record: Record, today: date) -> Record:
    """The record with the items about the baseline, and its section."""
    found = [(item.node_id, answer) for _, item, answer in suite_of(run).answers(run, about={About.CHANGE})]
    findings = [answer for _, answer in found if isinstance(answer, Finding)]
    skipped = {name: answer.reason for name, answer in found if isinstance(answer, Skipped)}
    errors = {name: str(answer) for name, answer in found if not isinstance(answer, (Finding, Skipped))}
    whole = replace(
        record,
        findings=[*record.findings, *findings],
        skipped={**record.skipped, **skipped},
        errors={**record.errors, **errors},
    )
    return beside_baseline(run, whole, today)

"""The gate as a Python call, and the record that it and a pytest run leave."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from torch import nn

from backdoor_audit.baseline import Difference, compare, regressions, renewed, section
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AuditError, OptionError
from backdoor_audit.evidence import Finding, Record
from backdoor_audit.installed import is_advisory, plugins_of
from backdoor_audit.model import surroundings
from backdoor_audit.options import AuditOptions
from backdoor_audit.rates import measured_rates
from backdoor_audit.run.run import Audit
from backdoor_audit.store import Store

NOT_TESTED = ("the training data, the code around the model, and what the model does on images unlike the clean ones",)


def build_record(
    sections: dict[str, Any],
    settings: dict[str, Any],
    *,
    findings: dict[str, Finding],
    skipped: dict[str, str],
    errors: dict[str, str],
    expected: list[str],
    seconds: float,
) -> Record:
    """The record of a run from what its items submitted, in the order of ``expected``."""
    order = {name: number for number, name in enumerate(expected)}
    plugins = plugins_of(sections.get("environment", {}))
    named = [replace(finding, audit=name) for name, finding in findings.items()]
    named.sort(key=lambda finding: order.get(finding.audit, len(order)))
    detections = list(sections.get("detections", {}).values())
    done = {*findings, *skipped, *errors}
    return Record(
        subject=sections.get("subject", {}),
        settings=settings,
        environment=sections.get("environment", {}),
        detections=detections,
        repairs=list(sections.get("repairs", {}).values()),
        canaries=list(sections.get("canaries", {}).values()),
        findings=[finding for finding in named if not is_advisory(finding.audit, plugins)],
        skipped=skipped,
        errors=errors,
        not_run=[name for name in expected if name not in done and not is_advisory(name, plugins)],
        not_tested=[*_not_tested(detections, settings), *NOT_TESTED],
        seconds=seconds,
        exhibits=sections.get("exhibits", {}),
        activations=sections.get("activations", {}),
        properties=list(sections.get("properties", {}).values()),
        rates=measured_rates() if settings.get("profile") == "standard" else [],
        advisory=[finding for finding in named if is_advisory(finding.audit, plugins)],
    )


def judged_record(run: Audit, *, shown: bool = False) -> Record:
    """The record of all items but those about the baseline, as yet without its seconds; what is not finished is computed.

    ``shown`` says whether the pictures for people are prepared as well.
    """
    findings: dict[str, Finding] = {}
    skipped: dict[str, str] = {}
    errors: dict[str, str] = {}
    for name, judged in run.judge_all():
        if isinstance(judged, Finding):
            findings[name] = judged
            if shown and not run.catalogue.is_advisory(name):
                with suppress(AuditError):  # a model that fails now has no pictures; what was judged stands
                    run.show(replace(judged, audit=name))
        elif isinstance(judged, str):
            skipped[name] = judged
        else:
            errors[name] = str(judged)
    return build_record(
        {**run.sections(), **(run.take_shown() if shown else {})},
        run.settings(),
        findings=findings,
        skipped=skipped,
        errors=errors,
        expected=[name for name in run.item_names() if not name.startswith("audit::test_regression[")],
        seconds=0.0,
    )


def difference_of(run: Audit) -> Difference:
    """What got worse and better since the run's baseline, which it must have; what is not finished is computed."""
    assert run.baseline is not None
    return compare(run.baseline, judged_record(run), source=run.options.baseline)


def beside_baseline(run: Audit, record: Record, today: date) -> Record:
    """The record with its section about the baseline, if the run has one."""
    if run.baseline is None:
        return record
    difference = compare(run.baseline, record, source=run.options.baseline)
    return replace(record, baseline=section(run.options.baseline, run.baseline, record, difference, today))


def write_baseline(run: Audit, record: Record, today: date) -> list[str]:
    """Write the record's baseline, and what to tell about it. Raises `BaselineError` if that must not be."""
    baseline, told = renewed(record, run.previous, today)
    baseline.write(Path(run.options.baseline))
    return [f"baseline written: {run.options.baseline}", *told]


def _not_tested(detections: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """What no detector with an answer sees, which detectors gave none, and what a profile or a race left out."""
    answered = [entry for entry in detections if not entry["inconclusive"]]
    lines = [
        f"{spot} (no detector of this run sees them)"
        for spot in (answered[0]["blind_spots"] if answered else ())
        if all(spot in entry["blind_spots"] for entry in answered)
    ]
    silent = [entry["detector"] for entry in detections if entry["inconclusive"]]
    if silent:
        lines.append(f"what {', '.join(silent)} look{'s' * (len(silent) == 1)} for: no answer (reason: see above)")
    lines += [
        f"triggers that do not show early in a search: {entry['detector']}: {entry['coverage']}"
        for entry in answered
        if entry["coverage"]
    ]
    if settings.get("profile") == "quick":
        lines.append(
            "the quick profile leaves out every detector that needs reference models: only small patches are seen"
        )
    elif settings.get("twins"):
        lines.append(
            f"whether the reference networks of {settings['twins']} are clean: whoever made the file decides what counts as "
            "natural"
        )
    return lines


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
        run = Audit(
            AuditOptions(**options),
            Store(Path(store or scratch)),
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
    return replace(record, seconds=time.perf_counter() - began)


def _with_regressions(run: Audit, record: Record, today: date) -> Record:
    """The record with the items about the baseline, and its section."""
    judged = {f"audit::test_regression[{name}]": found for name, found in regressions(difference_of(run)).items()}
    findings = [replace(found, audit=name) for name, found in judged.items() if isinstance(found, Finding)]
    skipped = {name: found for name, found in judged.items() if isinstance(found, str)}
    whole = replace(record, findings=[*record.findings, *findings], skipped={**record.skipped, **skipped})
    return beside_baseline(run, whole, today)

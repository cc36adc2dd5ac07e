"""A null distribution of one's own: how far clean models like the audited one are steered beyond their twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backdoor_audit import preconditions
from backdoor_audit.anomaly import SteeringNull
from backdoor_audit.detectors import UniversalPerturbation
from backdoor_audit.errors import OptionError
from backdoor_audit.options import AuditOptions
from backdoor_audit.run import Audit
from backdoor_audit.store import Store

LEAST_MODELS = 10  # Gumbel's two parameters from fewer values are hardly worth the name


def calibrate(models: Sequence[Path], options: AuditOptions, *, store: Store, progress: bool = False) -> SteeringNull:
    """Measure every detector with twins on each clean model file and fit the distribution of the most extreme class.

    Twins are trained once; finished work is kept in ``store``. Raises `OptionError` for fewer than `LEAST_MODELS` models,
    different numbers of classes, a model that cannot be judged, or images that allow no twins.
    """
    if len(models) < LEAST_MODELS:
        raise OptionError(f"{len(models)} clean models; at least {LEAST_MODELS} are needed to fit a distribution")
    largest: dict[str, list[float]] = {}
    classes = set()
    for file in models:
        run = Audit(replace(options, model=str(file)), store, progress=progress)
        run.check()
        unmet = preconditions.unmet(list(run.preconditions.values()))
        if unmet:
            raise OptionError(f"{file}: {unmet}; a model that cannot be judged is no reference")
        classes.add(run.num_classes)
        for detector in run.detectors:
            if not isinstance(detector, UniversalPerturbation):
                continue
            detection = run.detection(detector.name)
            deviations = [score.deviation for score in detection.scores if score.deviation is not None]
            if not deviations:
                raise OptionError(f"{file}: {detector.name}: {detection.inconclusive}")
            largest.setdefault(detector.name, []).append(max(deviations))
    if len(classes) > 1:
        raise OptionError(f"models with {sorted(classes)} classes; models with the same number are accepted")
    source = f"{len(models)} clean models with {run.clean_set.source}"
    return SteeringNull.fit(largest, classes=classes.pop(), models=len(models), source=source)

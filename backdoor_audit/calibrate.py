"""A null distribution of one's own: how far clean models like the audited one are steered beyond their twins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backdoor_audit.detectors import ByMargin, Consensus, Detection, compares
from backdoor_audit.errors import OptionError
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run import preconditions
from backdoor_audit.run.run import Run
from backdoor_audit.search.anomaly import MAD_TO_DEVIATION, MIN_CLASSES, SteeringNull, median
from backdoor_audit.source import code_fingerprint
from backdoor_audit.store import Store

LEAST_MODELS = 10  # Gumbel's two parameters from fewer values are hardly worth the name


def calibrate(models: Sequence[Path], options: AuditOptions, *, store: Store, progress: bool = False) -> SteeringNull:
    """Measure every detector with twins on each clean model file and fit the distribution of the most extreme class.

    Twins are trained once; finished work is kept in ``store``. Raises `OptionError` for fewer than `LEAST_MODELS` models,
    different numbers of classes, a model that cannot be judged, or images that allow no twins.
    """
    if len(models) < LEAST_MODELS:
        raise OptionError(
            f"--clean-models: {len(models)} model files; at least {LEAST_MODELS} are needed to fit a distribution"
        )
    found, classes, twins = [], set(), set()
    for file in models:
        run = Run(replace(options, model=str(file)), store, shipped(), progress=progress)
        run.check()
        unmet = preconditions.unmet(list(run.inputs.preconditions.values()))
        if unmet:
            raise OptionError(f"{file}: {unmet}; a model that cannot be judged is no reference")
        classes.add(run.inputs.num_classes)
        found.append([run.searches.detection(entry.name) for entry in run.searches.detectors if compares(entry)])
        twins.add(run.reference.twins.kind)
        for detection in found[-1]:
            if largest_deviation(detection) is None:
                raise OptionError(f"{file}: {detection.detector}: {detection.inconclusive}")
    if len(classes) > 1:
        raise OptionError(f"models with {sorted(classes)} classes; models with the same number are accepted")
    if len(twins) > 1:
        raise OptionError(
            f"models with twins of {len(twins)} kinds ({', '.join(sorted(twins))}); calibrate each kind apart"
        )
    source = f"{len(models)} clean models with {run.clean_set.source}"
    null = fitted(found, classes=classes.pop(), source=source, twins=twins.pop())
    return replace(null, code=code_fingerprint())


def fitted(
    found: Sequence[Sequence[Detection]], *, classes: int, source: str, twins: str = "plain_colour"
) -> SteeringNull:
    """The distribution of the most extreme class, from what every detector found beside ``twins`` of a kind on each clean model.

    It is fitted to models with ``classes`` classes; those with more raise it for as many. The consensus comes last: it weighs
    the deviations of the others by their own cuts.
    """
    largest: dict[str, list[float]] = {}
    others: dict[str, list[tuple[float, int]]] = {}

    def add(name: str, value: float | None, count: int) -> None:
        if value is not None and count == classes:
            largest.setdefault(name, []).append(value)
        elif value is not None:
            others.setdefault(name, []).append((value, count))

    counts = [sum(score.target_class is not None for score in detections[0].scores) for detections in found]
    for detections, count in zip(found, counts, strict=True):
        for detection in detections:
            add(detection.detector, largest_deviation(detection), count)
    null = SteeringNull.fit(largest, classes=classes, models=len(found), source=source, twins=twins, others=others)
    consensus = Consensus()
    for detections, count in zip(found, counts, strict=True):
        means = [mean for mean in consensus.means(detections, null).values() if mean is not None]
        add(consensus.name, max(means, default=None), count)
    fit = SteeringNull.fit(largest, classes=classes, models=len(found), source=source, twins=twins, others=others)
    return replace(fit, spreads=spreads(found, classes))


def spreads(found: Sequence[Sequence[Detection]], classes: int) -> dict[str, tuple[float, float]]:
    """The largest spread of the classes that any of the models shows to each detector: with so many classes, with any number."""
    largest: dict[str, tuple[float, float]] = {}
    for detection in itertools.chain.from_iterable(found):
        measured = [row.measured for row in detection.scores if isinstance(row.measured, ByMargin)]
        values = [abs(entry.excess) for entry in measured if entry.excess is not None]
        if len(values) < MIN_CLASSES:
            continue
        spread = MAD_TO_DEVIATION * median(values)
        few, any_number = largest.get(detection.detector, (0.0, 0.0))
        few = max(few, spread) if len(values) <= classes else few
        largest[detection.detector] = few, max(any_number, spread)
    return largest


def largest_deviation(detection: Detection) -> float | None:
    """That of the most extreme class, None without any."""
    return max(detection.deviations.values(), default=None)

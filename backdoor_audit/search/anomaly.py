"""From one value per class to an anomaly index: median, MAD, and a scale that means the same for any number of classes.

All detectors of a run share its false-alarm rate: each may use an equal part of it, so that an index of 2 is the first step
of Holm's procedure (1979). Whether a run is stopped is decided by that step alone, so no detector has to wait for another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from backdoor_audit.errors import DataFormatError, DegenerateScoresError
from backdoor_audit.files import UnreadableError, read_json, write_text
from backdoor_audit.presentable import presentable
from backdoor_audit.schema_of import LATER, Definitions, Stored
from backdoor_audit.structure import misfit

MAD_TO_DEVIATION = 1.4826  # 1 / Phi^-1(3/4): makes the MAD of normal values estimate their standard deviation
FALSE_ALARM_RATE = 0.02  # of a whole run: the share of clean models in which any detector may find an outlier
DETECTORS_IN_A_RUN = 9
DETECTOR_RATE = FALSE_ALARM_RATE / DETECTORS_IN_A_RUN  # what a calibrated index of 2 means for one detector
CALIBRATED_LIMIT = 2.0
ONE_ROW = frozenset({"relabelling"})
"""Detectors that ask about all classes at once."""
IN_OTHER_UNITS = ONE_ROW | {"consensus"}
"""Detectors whose measurement is no deviation in spreads of the classes."""
LEAST_DEVIATION = 3.5
"""In scaled MADs: what lies nearer is no outlier, whatever clean models show (Iglewicz and Hoaglin, 1993, section 3.4)."""
MIN_CLASSES = 5  # with fewer values the MAD says next to nothing: the cut would exceed 10 deviations
PROBABILITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)  # columns of the shipped table


AtLeast0 = Annotated[float, Stored(minimum=0)]
OfTwins = Annotated[
    str, Stored(enum=["plain_grey", "plain_colour", "normalised", "library", "alone_plain", "alone_normalised"])
]


@dataclass(frozen=True, slots=True)
class Anomaly:
    """How far each class lies below the others; all tuples run over the classes that were handed in.

    ``paper_index`` is Wang et al.'s (2019, section V-A): scaled MADs below the median of the raw sizes. ``log_index`` is the
    same on log sizes, because sizes are skewed. ``index`` is ``log_index`` rescaled so that 2 has the same false-alarm rate
    at every number of classes. Positive means smaller than the median. ``p_value`` is the probability that the smallest
    of that many outlier-free classes lies as far below as this one.
    """

    paper_index: tuple[float, ...]
    log_index: tuple[float, ...]
    index: tuple[float, ...]
    p_value: tuple[float, ...]
    median_size: float
    cut_size: float


def median(values: Sequence[float]) -> float:
    """The median; of an even number of values the mean of the two middle ones, as numpy does and `torch.median` does not."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def deviations_below(values: Sequence[float]) -> tuple[float, ...]:
    """Scaled median absolute deviations by which each value lies below the median.

    Raises `DegenerateScoresError` when there are no deviations to scale by, or a value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise DegenerateScoresError("scores are empty or not finite, so no class can be compared with the others")
    below = float(np.median(array)) - array
    mad = MAD_TO_DEVIATION * float(np.median(np.abs(below)))
    if mad <= 1e-12 * max(1.0, float(np.abs(array).max())):
        raise DegenerateScoresError("at least half of the scores are equal, so their median absolute deviation is 0")
    return tuple((below / mad).tolist())


def anomaly(sizes: Sequence[float], *, reference_sizes: Sequence[float] | None = None) -> Anomaly:
    """The indices of classes whose smallest triggers have these sizes (pixels or any positive unit).

    ``reference_sizes`` are what is natural for each class; when they are given, a class is compared with its own
    reference before it is compared with the other classes. Raises `DegenerateScoresError` for fewer than
    `MIN_CLASSES` classes, sizes that are not positive and finite, or sizes without spread.
    """
    if len(sizes) < MIN_CLASSES:
        raise DegenerateScoresError(
            f"{len(sizes)} classes have a size; an outlier among them can be told from {MIN_CLASSES} classes on"
        )
    if not all(math.isfinite(size) and size > 0 for size in (*sizes, *(reference_sizes or ()))):
        raise DegenerateScoresError("a size is zero, negative or not finite")
    natural = np.log(reference_sizes) if reference_sizes is not None else np.zeros(len(sizes))
    logs = np.log(sizes) - natural
    log_index = deviations_below(logs.tolist())
    scale = CALIBRATED_LIMIT / null_quantile(len(sizes), DETECTOR_RATE)
    mad = MAD_TO_DEVIATION * float(np.median(np.abs(logs - np.median(logs))))
    return Anomaly(
        paper_index=deviations_below(sizes),
        log_index=log_index,
        index=tuple(scale * value for value in log_index),
        p_value=tuple(_p_value(value, len(sizes)) for value in log_index),
        median_size=median(sizes),
        cut_size=math.exp(float(np.median(logs)) - mad * CALIBRATED_LIMIT / scale + float(np.median(natural))),
    )


@cache
def null_quantile(classes: int, probability: float) -> float:
    """The largest of ``classes`` log indices that outlier-free models exceed with that probability.

    Sizes are taken as log-normal and independent. Between the rows of the shipped table the value is interpolated in the
    logarithm of the number of classes; past its ends the nearest row holds.
    """
    rows = _table()
    wanted = math.log(probability)
    known = [math.log(column) for column in PROBABILITIES]
    at_rows = [float(np.interp(-wanted, [-column for column in known], rows[row])) for row in rows]
    return float(np.interp(math.log(classes), [math.log(row) for row in rows], at_rows))


@dataclass(frozen=True, slots=True)
class SteeringNull:
    """How far the most extreme class of a clean model is steered beyond its twins, in spreads of the classes.

    ``fits`` holds location and scale of Gumbel's distribution of the largest of ``classes`` values for every detector by name,
    fitted to ``models`` clean models; with more classes the location rises as that of a maximum of more values does, and by
    ``growth`` for every factor e in their number on top, where models with more classes were seen to go further.
    ``source`` says which models, ``twins`` with which kind of twins they were compared, or that there were none (`KINDS`). A
    detector that `ONE_ROW` names measures one value of the whole model, in units of its own. ``spreads`` holds the largest spread
    of the classes that a clean model has shown to a detector, with that many classes and with any number.
    ``code`` is the fingerprint of the package that measured; empty for the one that ships.
    """

    fits: Mapping[str, Annotated[tuple[float, float], Stored(minItems=2, maxItems=2)]]
    classes: Annotated[int, Stored(minimum=2)]
    models: Annotated[int, Stored(minimum=1)]
    source: str
    twins: Annotated[OfTwins, LATER] = "plain_colour"
    growth: Annotated[Mapping[str, AtLeast0], LATER] = field(default_factory=dict)
    spreads: Annotated[Mapping[str, Annotated[tuple[AtLeast0, AtLeast0], Stored(minItems=2, maxItems=2)]], LATER] = (
        field(default_factory=dict)
    )
    code: Annotated[str, LATER] = ""

    @property
    def alone(self) -> bool:
        """Whether it was measured without twins, so that an index by it needs none."""
        return self.twins.startswith("alone")

    def p_value(self, detector: str, deviation: float, classes: int) -> float:
        """The share of clean models with that many classes in which some class is steered at least this far."""
        location, scale = self._at(detector, classes)
        deviation *= self.bare_cut(detector, classes) / self.cut(detector, classes)
        return -math.expm1(-math.exp(min(-(deviation - location) / scale, 700.0)))

    def index(self, detector: str, deviation: float, classes: int) -> float:
        """The deviation rescaled so that 2 has one detector's share of the run's false alarms."""
        return CALIBRATED_LIMIT * deviation / self.cut(detector, classes)

    def usual_spread(self, detector: str, classes: int) -> float:
        """The largest spread of the classes that counts as usual: twice what clean models have shown; 0 if none has."""
        few, any_number = self.spreads.get(detector, (0.0, 0.0))
        return 2.0 * (few if classes <= self.classes else any_number)

    def cut(self, detector: str, classes: int) -> float:
        """The deviation whose p-value is one detector's share of the run's false alarms, and no less than `LEAST_DEVIATION`."""
        cut = self.bare_cut(detector, classes)
        return cut if detector in IN_OTHER_UNITS else max(cut, LEAST_DEVIATION)

    def bare_cut(self, detector: str, classes: int) -> float:
        """The same by the fit alone; where that is the smaller one, p-values are those of deviations that shrink as much."""
        location, scale = self._at(detector, classes)
        return location - scale * math.log(-math.log1p(-DETECTOR_RATE))

    def _at(self, detector: str, classes: int) -> tuple[float, float]:
        location, scale = self.fits[detector]
        more = math.log(classes / self.classes)
        extremes = 0.0 if detector in ONE_ROW else scale * more
        return location + extremes + self.growth.get(detector, 0.0) * max(more, 0.0), scale

    @classmethod
    def fit(
        cls,
        largest: Mapping[str, Sequence[float]],
        *,
        classes: int,
        models: int,
        source: str,
        twins: str = "plain_colour",
        others: Mapping[str, Sequence[tuple[float, int]]] | None = None,
    ) -> SteeringNull:
        """From the largest deviations that each detector measured on clean models; raises `DegenerateScoresError`.

        A tail that is fitted to a few models may be too light. Where a model lies near or past its detector's cut, the scale
        is widened until the cut exceeds its value by a tenth: no model of the reference is flagged. ``others`` are values of
        models with another number of classes. They are few, so the cut for as many classes is raised until it exceeds their
        values by half.
        """
        fits, growth = {}, {}
        surprise = -math.log(-math.log1p(-DETECTOR_RATE))
        for name, values in largest.items():
            location, scale = fit_gumbel(values)
            fits[name] = location, max(scale, *((1.1 * value - location) / surprise for value in values))
            null = cls(fits, classes, models, source, twins)
            further = [
                (1.5 * value - null.cut(name, count)) / math.log(count / classes)
                for value, count in (others or {}).get(name, ())
                if count > classes
            ]
            growth[name] = max(0.0, *further) if further else 0.0
        return cls(fits, classes, models, source, twins, growth)

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all. Raises `OSError`."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> SteeringNull:
        """Read what `save` wrote. Raises `DataFormatError` for anything else."""
        accepted = "a file written by backdoor-audit calibrate is accepted"
        try:
            stored = presentable(read_json(path))
        except UnreadableError as error:
            raise DataFormatError(f"{path}: {error}; {accepted}") from None
        if wrong := misfit(stored, Definitions({}).whole(cls)):
            raise DataFormatError(f"{path}: {wrong}; {accepted}")
        null = _parsed(stored)
        for name, (location, scale) in null.fits.items():
            if not scale > 0 or not null.bare_cut(name, MIN_CLASSES) > 0:
                raise DataFormatError(
                    f"{path}: fits.{name}: location {location:.4g} and scale {scale:.4g} make no cut above 0; {accepted}"
                )
        return null


def _parsed(stored: Mapping[str, Any]) -> SteeringNull:
    fits = {name: (float(location), float(scale)) for name, (location, scale) in stored["fits"].items()}
    growth = {name: float(value) for name, value in stored.get("growth", {}).items()}
    twins = stored.get("twins", "library")
    spreads = {name: (float(few), float(more)) for name, (few, more) in stored.get("spreads", {}).items()}
    code = str(stored.get("code", ""))
    return SteeringNull(fits, stored["classes"], stored["models"], stored["source"], twins, growth, spreads, code)


@cache
def shipped_null(twins: str = "plain_colour") -> SteeringNull:
    """The distribution that comes with the package, from clean models that no rate is reported on, for one kind of twins."""
    stored = json.loads(resources.files("backdoor_audit.search").joinpath("steering_null.json").read_text())
    return _parsed({**stored[twins], "twins": twins})


@cache
def shipped_nulls() -> tuple[SteeringNull, ...]:
    """All of them, one for each kind of twins."""
    stored = json.loads(resources.files("backdoor_audit.search").joinpath("steering_null.json").read_text())
    return tuple(map(shipped_null, stored))


def fit_gumbel(largest: Sequence[float]) -> tuple[float, float]:
    """Location and scale by maximum likelihood; raises `DegenerateScoresError` for fewer than 10 values or none that differ."""
    values = np.asarray(largest, dtype=np.float64)
    if len(values) < 10 or not np.ptp(values) > 0:
        raise DegenerateScoresError(f"{len(values)} values; at least 10 that differ are needed to fit a distribution")
    scale = float(values.std() * math.sqrt(6) / math.pi)
    for _ in range(200):  # the fixed point of the likelihood equation
        weights = np.exp(-(values - values.min()) / scale)
        scale = 0.5 * (scale + float(values.mean() - (values * weights).sum() / weights.sum()))
    location = values.min() - scale * math.log(float(np.exp(-(values - values.min()) / scale).mean()))
    return float(location), scale


def simulate_null(classes: int, *, draws: int, seed: int) -> tuple[float, ...]:
    """The quantiles of the largest log index among ``classes`` independent normal values, one for each of `PROBABILITIES`."""
    generator = np.random.default_rng([seed, classes])
    largest = []
    chunk = max(1, 4_000_000 // classes)
    for start in range(0, draws, chunk):
        values = generator.standard_normal((min(chunk, draws - start), classes))
        below = np.median(values, axis=1, keepdims=True) - values
        largest.append(below.max(axis=1) / (MAD_TO_DEVIATION * np.median(np.abs(below), axis=1)))
    return tuple(np.quantile(np.concatenate(largest), 1 - np.asarray(PROBABILITIES)).tolist())


def _p_value(log_index: float, classes: int) -> float:
    """Interpolated in the logarithm of the probability; outside the table its first or last probability is the bound."""
    quantiles = [null_quantile(classes, probability) for probability in PROBABILITIES]
    if log_index < quantiles[0]:
        return 1.0
    return float(np.exp(np.interp(log_index, quantiles, np.log(PROBABILITIES))))


@cache
def _table() -> dict[int, tuple[float, ...]]:
    stored = json.loads(resources.files("backdoor_audit.search").joinpath("anomaly_null.json").read_text())
    return {int(classes): tuple(quantiles) for classes, quantiles in stored["quantiles"].items()}

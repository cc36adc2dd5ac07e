"""From one size per class to an anomaly index: median, MAD, and a scale that means the same for any number of classes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from backdoor_audit.errors import DegenerateScoresError

MAD_TO_DEVIATION = 1.4826  # 1 / Phi^-1(3/4): makes the MAD of normal values estimate their standard deviation
FALSE_ALARM_RATE = 0.05  # what a calibrated index of 2 means: this share of outlier-free models has a higher one
CALIBRATED_LIMIT = 2.0
MIN_CLASSES = 5  # with fewer values the MAD says next to nothing: the cut would exceed 10 deviations
PROBABILITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)  # columns of the shipped table


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
    scale = CALIBRATED_LIMIT / null_quantile(len(sizes), FALSE_ALARM_RATE)
    mad = MAD_TO_DEVIATION * float(np.median(np.abs(logs - np.median(logs))))
    return Anomaly(
        paper_index=deviations_below(sizes),
        log_index=log_index,
        index=tuple(scale * value for value in log_index),
        p_value=tuple(_p_value(value, len(sizes)) for value in log_index),
        median_size=median(sizes),
        cut_size=math.exp(float(np.median(logs)) - mad * CALIBRATED_LIMIT / scale + float(np.median(natural))),
    )


def null_quantile(classes: int, probability: float) -> float:
    """The largest of ``classes`` log indices that outlier-free models exceed with that probability.

    Sizes are taken as log-normal and independent. Between the rows of the shipped table the value is interpolated in the
    logarithm of the number of classes; past its ends the nearest row holds.
    """
    rows = _table()
    column = PROBABILITIES.index(probability)
    return float(np.interp(math.log(classes), [math.log(row) for row in rows], [rows[row][column] for row in rows]))


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
    stored = json.loads(resources.files("backdoor_audit").joinpath("anomaly_null.json").read_text())
    return {int(classes): tuple(quantiles) for classes, quantiles in stored["quantiles"].items()}

"""Which clean score is the highest that passes, for a chosen false-positive rate.

The rule for every threshold: of the n clean images that a filter is fitted on, at most ``m = floor(false_positive_rate *
n)`` are rejected. The threshold is the (m + 1)-th highest clean score, and only a score strictly above it is suspicious.
So exactly m fitting images are rejected if the m-th and the (m + 1)-th score differ; where they tie, all that tie pass.
Images that were not used for fitting are rejected at about that rate, not exactly: measure it with `filter_rates`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DataFormatError, ModelFormatError, OptionError

FALSE_POSITIVE_RATE = 0.05
"""Of a filter for which nobody chose another."""


def _allowed(false_positive_rate: float, number: int) -> int:
    """How many of so many clean images may be rejected."""
    return min(math.floor(false_positive_rate * number + 1e-9), number - 1)  # 0.29 * 100 is 28.999999999999996


def check_rate(false_positive_rate: float, clean: CleanSet) -> None:
    """Raise `OptionError` for a rate out of range, `DataFormatError` for too few images to show it."""
    if not 0 < false_positive_rate < 1:
        raise OptionError(
            f"false_positive_rate must lie between 0 and 1, got {false_positive_rate} (rates are fractions, not percent)"
        )
    if _allowed(false_positive_rate, len(clean)) < 1:
        raise DataFormatError(
            f"{clean.source}: {len(clean)} clean images cannot show a false-positive rate of {false_positive_rate}; give at "
            f"least {math.ceil(1 / false_positive_rate - 1e-9)}, or raise the rate"
        )


def threshold_of(scores: Tensor, false_positive_rate: float) -> float:
    """The highest clean score that passes."""
    wrong = int((~torch.isfinite(scores)).sum())
    if wrong:
        raise ModelFormatError(
            f"{wrong} of {len(scores)} clean images have a score that is NaN or infinite; no filter fits"
        )
    return float(scores.sort(descending=True).values[_allowed(false_positive_rate, len(scores))])


def above(scores: Tensor, threshold: float) -> Tensor:
    """Which scores are suspicious, (n,) bool."""
    return ~(scores <= threshold)  # not `scores > threshold`, which is false for NaN

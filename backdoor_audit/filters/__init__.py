"""Run-time filters: which single images carry a trigger. Fitted on clean images, at a chosen false-positive rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Finding, Limits, judge
from backdoor_audit.filters.activation import ActivationFilter
from backdoor_audit.filters.filter import Filter, FilterRates, filter_rates
from backdoor_audit.filters.strip import StripFilter
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Backdoor

__all__ = [
    "FILTERS",
    "ActivationFilter",
    "Filter",
    "FilterRates",
    "StripFilter",
    "filter_rates",
    "fitted",
    "judge_filter",
]

FILTERS = ("activation", "strip")


def fitted(
    name: str, classifier: Classifier, clean: CleanSet, trigger: Backdoor, *, generator: torch.Generator
) -> Filter:
    """The filter of that name, one of `FILTERS`, with its defaults. Raises what its ``fit`` raises."""
    if name == "activation":
        return ActivationFilter.fit(classifier, clean, trigger)
    return StripFilter.fit(classifier, clean, generator=generator)


def judge_filter(rates: Sequence[FilterRates], limits: Limits) -> Finding:
    """Whether a filter catches the triggers, on held-out images; of several triggers, the one that it misses most often."""
    worst = max(rates, key=lambda entry: entry.false_negative_rate)
    missed, rejected = worst.false_negative_rate, worst.false_positive_rate
    reason = f"{missed:.1%} of {missed.n} stamped images pass the filter, {rejected:.1%} of {rejected.n} clean ones are rejected"
    details = {"false_negative_rate": list(missed.interval), "false_positive_rate": float(rejected)}
    return judge(
        "false_negative_rate", float(missed), at_most=limits.false_negative_rate, reason=reason, details=details
    )

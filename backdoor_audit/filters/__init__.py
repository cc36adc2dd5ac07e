"""Run-time filters: which single images carry a trigger. Fitted on clean images, at a chosen false-positive rate."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_audit.evidence import Finding, Limits, judge
from backdoor_audit.filters.activation import Activation, ActivationFilter
from backdoor_audit.filters.filter import Filter, FilterMethod, FilterRates, filter_rates
from backdoor_audit.filters.novelty import Novelty, NoveltyFilter
from backdoor_audit.filters.strip import Strip, StripFilter

__all__ = [
    "FILTERS",
    "Activation",
    "ActivationFilter",
    "Filter",
    "FilterMethod",
    "FilterRates",
    "Novelty",
    "NoveltyFilter",
    "Strip",
    "StripFilter",
    "filter_rates",
    "judge_filter",
]

FILTERS: tuple[FilterMethod, ...] = (Activation(), Strip(), Novelty())
"""Those that an audit tries on the triggers that it flags."""


def judge_filter(rates: Sequence[FilterRates], limits: Limits) -> Finding:
    """Whether a filter catches the triggers, on held-out images; of several triggers, the one that it misses most often."""
    worst = max(rates, key=lambda entry: entry.false_negative_rate)
    missed, rejected = worst.false_negative_rate, worst.false_positive_rate
    reason = f"{missed:.1%} of {missed.n} stamped images pass the filter, {rejected:.1%} of {rejected.n} clean ones are rejected"
    details = {"false_negative_rate": list(missed.interval), "false_positive_rate": float(rejected)}
    return judge(
        "false_negative_rate", float(missed), at_most=limits.false_negative_rate, reason=reason, details=details
    )

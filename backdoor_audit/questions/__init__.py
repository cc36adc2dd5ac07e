"""The questions of an audit, one file each. ``audits/`` asks them, with the numbers that their answers are judged by."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from backdoor_audit.evidence import Finding, inconclusive, judge
from backdoor_audit.item import Item
from backdoor_audit.questions.question import Answer, Question, Skipped
from backdoor_audit.questions.suite import Suite
from backdoor_audit.words import About, Words

if TYPE_CHECKING:
    from backdoor_audit.questions.anomaly_index import AnomalyIndex
    from backdoor_audit.questions.false_negative_rate import FalseNegativeRate
    from backdoor_audit.questions.power import Power
    from backdoor_audit.questions.precondition import Precondition
    from backdoor_audit.questions.property import Property
    from backdoor_audit.questions.regression import Regression
    from backdoor_audit.questions.repair import AttackSuccessRateAfter, CleanAccuracyDrop, RobustAccuracy

Submit: TypeAlias = Callable[[Finding], None]
"""What the fixture ``evidence`` is: it records a finding, which decides whether the item passes."""

_HOMES = {
    "AnomalyIndex": "anomaly_index",
    "AttackSuccessRateAfter": "repair",
    "CleanAccuracyDrop": "repair",
    "FalseNegativeRate": "false_negative_rate",
    "Power": "power",
    "Precondition": "precondition",
    "Property": "property",
    "Regression": "regression",
    "RobustAccuracy": "repair",
}

__all__ = [
    "About",
    "AnomalyIndex",
    "Answer",
    "AttackSuccessRateAfter",
    "CleanAccuracyDrop",
    "FalseNegativeRate",
    "Finding",
    "Item",
    "Power",
    "Precondition",
    "Property",
    "Question",
    "Regression",
    "RobustAccuracy",
    "Skipped",
    "Submit",
    "Suite",
    "Words",
    "inconclusive",
    "judge",
]


def __getattr__(name: str) -> Any:
    """The shipped questions are imported when first used: pytest loads the plugin in every run, and torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

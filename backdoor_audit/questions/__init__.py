"""The questions of an audit, one file each. ``audits/`` asks them, with the numbers that their answers are judged by."""

from collections.abc import Callable
from typing import TypeAlias

from backdoor_audit.evidence import Finding, inconclusive, judge
from backdoor_audit.item import Item
from backdoor_audit.questions.anomaly_index import AnomalyIndex
from backdoor_audit.questions.false_negative_rate import FalseNegativeRate
from backdoor_audit.questions.power import Power
from backdoor_audit.questions.precondition import Precondition
from backdoor_audit.questions.property import Property
from backdoor_audit.questions.question import Answer, Question, Skipped
from backdoor_audit.questions.regression import Regression
from backdoor_audit.questions.repair import AttackSuccessRateAfter, CleanAccuracyDrop, RobustAccuracy
from backdoor_audit.questions.suite import Suite
from backdoor_audit.words import About, Words

Submit: TypeAlias = Callable[[Finding], None]
"""What the fixture ``evidence`` is: it records a finding, which decides whether the item passes."""

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

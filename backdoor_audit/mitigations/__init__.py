"""Mitigations: each repairs a copy of a classifier, given a trigger, and is judged on held-out images."""

from __future__ import annotations

from backdoor_audit.mitigations.linf_pruning import LinfPruning
from backdoor_audit.mitigations.neural_cleanse import NeuronPruning, Unlearning
from backdoor_audit.mitigations.outcome import CurvePoint, Mitigation, Outcome, Scores, judge_drop, judge_success

MITIGATIONS: tuple[NeuronPruning | LinfPruning | Unlearning, ...] = (NeuronPruning(), LinfPruning(), Unlearning())

__all__ = [
    "MITIGATIONS",
    "CurvePoint",
    "LinfPruning",
    "Mitigation",
    "NeuronPruning",
    "Outcome",
    "Scores",
    "Unlearning",
    "judge_drop",
    "judge_success",
]

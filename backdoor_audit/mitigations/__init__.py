"""Mitigations: each repairs a copy of a classifier, given a trigger, and is judged on held-out images."""

from __future__ import annotations

from backdoor_audit.mitigations.anp import ANP
from backdoor_audit.mitigations.baking import baked
from backdoor_audit.mitigations.benign_salience import BenignSalience
from backdoor_audit.mitigations.bnp import BatchNormPruning
from backdoor_audit.mitigations.clp import ChannelLipschitz
from backdoor_audit.mitigations.distilled_unlearning import DistilledUnlearning
from backdoor_audit.mitigations.fine_pruning import FinePruning
from backdoor_audit.mitigations.fine_tuning import FineTuning
from backdoor_audit.mitigations.fmp import FeatureMapPruning
from backdoor_audit.mitigations.ft_sam import FTSAM
from backdoor_audit.mitigations.i_bau import IBAU
from backdoor_audit.mitigations.linf_pruning import LinfPruning
from backdoor_audit.mitigations.nad import NAD
from backdoor_audit.mitigations.neural_cleanse import NeuronPruning, Unlearning
from backdoor_audit.mitigations.outcome import (
    CurvePoint,
    Mitigation,
    Outcome,
    Repair,
    Scores,
    judge_drop,
    judge_robustness,
    judge_success,
    judged_by,
    score,
)
from backdoor_audit.mitigations.rnp import RNP
from backdoor_audit.mitigations.several import Joint, against_all

MITIGATIONS: tuple[Repair, ...] = (
    NeuronPruning(),
    LinfPruning(),
    Unlearning(),
    DistilledUnlearning(),
    ChannelLipschitz(u=None),
    BatchNormPruning(u=None),
    BenignSalience(),
    FineTuning(),
    FinePruning(),
    RNP(),
    ANP(),
    FTSAM(),
    NAD(),
    IBAU(),
    FeatureMapPruning(),
)
"""Those that work against a trigger first, then those that need none, the cheapest first."""

__all__ = [
    "ANP",
    "FTSAM",
    "IBAU",
    "MITIGATIONS",
    "NAD",
    "RNP",
    "BatchNormPruning",
    "BenignSalience",
    "ChannelLipschitz",
    "CurvePoint",
    "DistilledUnlearning",
    "FeatureMapPruning",
    "FinePruning",
    "FineTuning",
    "Joint",
    "LinfPruning",
    "Mitigation",
    "NeuronPruning",
    "Outcome",
    "Repair",
    "Scores",
    "Unlearning",
    "against_all",
    "baked",
    "judge_drop",
    "judge_robustness",
    "judge_success",
    "judged_by",
    "score",
]

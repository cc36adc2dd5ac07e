"""Repairs: each repairs a copy of a classifier, given a trigger, and is judged on held-out images."""

from __future__ import annotations

from backdoor_audit.record_types import CurvePoint, Scores
from backdoor_audit.repairs.anp import ANP
from backdoor_audit.repairs.baking import baked
from backdoor_audit.repairs.benign_salience import BenignSalience
from backdoor_audit.repairs.bnp import BatchNormPruning
from backdoor_audit.repairs.clp import ChannelLipschitz
from backdoor_audit.repairs.distilled_unlearning import DistilledUnlearning
from backdoor_audit.repairs.fine_pruning import FinePruning
from backdoor_audit.repairs.fine_tuning import FineTuning
from backdoor_audit.repairs.fmp import FeatureMapPruning
from backdoor_audit.repairs.fst import FeatureShiftTuning
from backdoor_audit.repairs.ft_sam import FTSAM
from backdoor_audit.repairs.i_bau import IBAU
from backdoor_audit.repairs.linf_pruning import LinfPruning
from backdoor_audit.repairs.nad import NAD
from backdoor_audit.repairs.neural_cleanse import NeuronPruning, Unlearning
from backdoor_audit.repairs.outcome import (
    Repair,
    RepairOutcome,
    RepairResult,
    judge_drop,
    judge_robustness,
    judge_success,
    judged_by,
    score,
)
from backdoor_audit.repairs.rnp import RNP
from backdoor_audit.repairs.sau import SharedUnlearning
from backdoor_audit.repairs.several import Joint, against_all

REPAIRS: tuple[Repair, ...] = (
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
    FeatureShiftTuning(),
    FTSAM(),
    NAD(),
    IBAU(),
    SharedUnlearning(),
    FeatureMapPruning(),
)
"""Those that work against a trigger first, then those that need none, the cheapest first."""

__all__ = [
    "ANP",
    "FTSAM",
    "IBAU",
    "NAD",
    "REPAIRS",
    "RNP",
    "BatchNormPruning",
    "BenignSalience",
    "ChannelLipschitz",
    "CurvePoint",
    "DistilledUnlearning",
    "FeatureMapPruning",
    "FeatureShiftTuning",
    "FinePruning",
    "FineTuning",
    "Joint",
    "LinfPruning",
    "NeuronPruning",
    "Repair",
    "RepairOutcome",
    "RepairResult",
    "Scores",
    "SharedUnlearning",
    "Unlearning",
    "against_all",
    "baked",
    "judge_drop",
    "judge_robustness",
    "judge_success",
    "judged_by",
    "score",
]

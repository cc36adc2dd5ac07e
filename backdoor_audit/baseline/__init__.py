"""Regression against an accepted model: the baseline file, what got worse since, and which findings somebody answers for.

A baseline is the signature of an accepted model, made from its record and kept in the repository of those who use the model. A
later record is compared with it: `compare` names what is worse or better beyond the noise that was measured between clean
models. Findings that are not a pass may be accepted in the file by hand, with a reason, an owner and a last day.
"""

from backdoor_audit.baseline.acceptance import Acceptance
from backdoor_audit.baseline.difference import (
    INDEX_NOISE,
    REGRESSIONS,
    STEERED_NOISE,
    Difference,
    compare,
    difference,
    index_noise,
)
from backdoor_audit.baseline.judgement import Standing, regressions, renewed, section, standing
from backdoor_audit.baseline.signature import Baseline, baseline_of, configuration, read_signature, undecided_in

__all__ = [
    "INDEX_NOISE",
    "REGRESSIONS",
    "STEERED_NOISE",
    "Acceptance",
    "Baseline",
    "Difference",
    "Standing",
    "baseline_of",
    "compare",
    "configuration",
    "difference",
    "index_noise",
    "read_signature",
    "regressions",
    "renewed",
    "section",
    "standing",
    "undecided_in",
]

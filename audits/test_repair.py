"""Can the trigger that was found be taken out of a copy of the model without hurting it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backdoor_audit.evidence import Finding, Limits
from backdoor_audit.mitigations import Outcome, judge_drop, judge_success


def test_attack_success_rate_after(
    repair: Sequence[Outcome], limits: Limits, evidence: Callable[[Finding], None]
) -> None:
    """After the repair, the trigger moves at most a tenth of other classes' held-out images to its class."""
    evidence(judge_success(repair, limits))


def test_clean_accuracy_drop(repair: Sequence[Outcome], limits: Limits, evidence: Callable[[Finding], None]) -> None:
    """The repair costs at most three points of clean accuracy on held-out images."""
    evidence(judge_drop(repair, limits))

"""Did the model get worse than the one that was accepted? Run by ``--audit-baseline=FILE``."""

from __future__ import annotations

from collections.abc import Callable

from backdoor_audit.evidence import Finding


def test_regression(regression: Finding, evidence: Callable[[Finding], None]) -> None:
    """Beyond the noise between clean models, nothing is worse than in the baseline, whatever the absolute limits say."""
    evidence(regression)

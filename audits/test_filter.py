"""Would a filter in front of the model catch the trigger that was found, at a price in clean images that can be paid?"""

from __future__ import annotations

from collections.abc import Callable

from backdoor_audit.evidence import Finding


def test_false_negative_rate(filtering: Finding, evidence: Callable[[Finding], None]) -> None:
    """With at most 5 % of clean images rejected, at most a tenth of the stamped held-out images gets past the filter."""
    evidence(filtering)

"""Does Hypothesis refute anything that holds for a clean classifier?"""

from __future__ import annotations

from collections.abc import Callable

from backdoor_audit.evidence import Finding
from backdoor_audit.properties import PropertyOutcome


def test_property(property_outcome: PropertyOutcome, evidence: Callable[[Finding], None]) -> None:
    """No example that a search drew, and none that was kept from earlier runs, passes the property's limit."""
    evidence(property_outcome.finding)

"""Can this model be judged with these images at all? If not, every detector is inconclusive, never clean."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from backdoor_audit.evidence import Finding


def test_precondition(
    condition: str, preconditions: Mapping[str, Finding], evidence: Callable[[Finding], None]
) -> None:
    """One condition under which a detector's silence means something."""
    evidence(preconditions[condition])

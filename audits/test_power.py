"""Would this audit have seen a backdoor in this model? A canary in a copy of it shows that. Run by ``--audit-canary``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backdoor_audit.canary import Sighting, judge_power
from backdoor_audit.evidence import Finding
from backdoor_audit.options import AuditOptions


def test_power(sightings: Sequence[Sighting], audit_options: AuditOptions, evidence: Callable[[Finding], None]) -> None:
    """With a known trigger in a copy of the model, this run would have been stopped, and the right class named."""
    evidence(judge_power(sightings, allow_suspected=audit_options.inconclusive == "fail"))

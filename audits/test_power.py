"""Would this audit have seen a backdoor in this model? A canary in a copy of it shows that. Run by ``--audit-canary``."""

from backdoor_audit.questions import Finding, Power, Submit

QUESTION = Power()


def test_power(finding: Finding, evidence: Submit) -> None:
    """With a known trigger in a copy of the model, this run would have been stopped, and the right class named."""
    evidence(finding)

"""Can this model be judged with these images at all? If not, every detector is inconclusive, never clean."""

from backdoor_audit.questions import Finding, Precondition, Submit

QUESTION = Precondition()


def test_precondition(finding: Finding, evidence: Submit) -> None:
    """One condition under which the silence of a detector means something."""
    evidence(finding)

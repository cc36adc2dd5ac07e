"""Did the model get worse than the one that was accepted? Run by ``--audit-baseline=FILE``."""

from backdoor_audit.questions import Finding, Regression, Submit

QUESTION = Regression()


def test_regression(finding: Finding, evidence: Submit) -> None:
    """Beyond the noise between clean models, nothing is worse than in the baseline, whatever the absolute limits say."""
    evidence(finding)

"""Does a repair give stamped images their true label again?"""

from backdoor_audit.questions import Finding, RobustAccuracy, Submit

QUESTION = RobustAccuracy(
    robust_accuracy_lost=0.15,  # FMP (arXiv 2307.11565, Table 1): 0.05 on average, 0.17 for blends, which hide more of the image
)


def test_robust_accuracy(finding: Finding, evidence: Submit) -> None:
    """After the repair, stamped images are predicted as labelled nearly as often as clean ones were before."""
    evidence(finding)

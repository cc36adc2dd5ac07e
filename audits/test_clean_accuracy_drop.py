"""What does a repair cost in accuracy on clean images?"""

from backdoor_audit.questions import CleanAccuracyDrop, Finding, Submit

QUESTION = CleanAccuracyDrop(
    clean_accuracy_drop=0.03,  # Wang et al. (2019) report <= 0.036
    harmless_drop=0.02,  # where nothing called for a repair, tried all the same (--audit-repairs=always)
)


def test_clean_accuracy_drop(finding: Finding, evidence: Submit) -> None:
    """The repair leaves the accuracy on held-out images nearly as it was."""
    evidence(finding)

"""Would a filter in front of the model catch the trigger that was found, at a price in clean images that can be paid?"""

from backdoor_audit.questions import FalseNegativeRate, Finding, Submit

QUESTION = FalseNegativeRate(
    false_negative_rate=0.10,  # of stamped images; Wang et al. (2019) report < 0.0163 for patches. Clean ones: 5 % rejected
)


def test_false_negative_rate(finding: Finding, evidence: Submit) -> None:
    """Of stamped held-out images few get past the filter."""
    evidence(finding)

"""Consensus over hand-made detections: what is added up, what is handed on, and when there is no answer."""

from dataclasses import replace

import pytest
import torch

from backdoor_audit.detectors import Consensus
from backdoor_audit.detectors.detection import Detection
from backdoor_audit.evidence import Verdict
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.search.anomaly import SteeringNull
from backdoor_audit.triggers.trigger import Addition
from tests.subjects import seeded
from tests.subjects.detections import Shown, margin_row

FAMILIES = ("patch_scan", "additive")
CLASSES = 6
NULL = SteeringNull(
    {"patch_scan": (1.0, 0.2), "additive": (2.0, 0.4), "consensus": (0.2, 0.05)},
    classes=CLASSES,
    models=20,
    source="twenty hand-made models",
)
CONSENSUS = Consensus(of=FAMILIES)


def detection(name, shares, *, success=0.8, **rest):
    """A detection whose deviations are these shares of what is an outlier by itself."""
    scores = [
        margin_row(
            target,
            success_val=success,
            index=2 * share,
            p_value=0.5,
            image_passes=10,
            margin=share,
            natural_margin=0.0,
            natural_success=0.1,
            deviation=None if share is None else share * NULL.cut(name, CLASSES),
        )
        for target, share in enumerate(shares)
    ]
    triggers = [Addition(torch.full((1, 2, 2), 0.1 * len(name)), target) for target in range(CLASSES)]
    given = {"settings": "", "means": f"a {name}", "reference": NULL.source, **rest}
    return Detection(detector=name, scores=scores, triggers=triggers, **given)


def weighed(detections):
    return CONSENSUS.weighed(detections, NULL)


LOW = [0.1, 0.0, -0.1, 0.0, 0.1, -0.2]
RAISED = [0.1, 0.0, 0.6, 0.0, 0.1, -0.2]


def verdicts(found):
    return {score.target_class: found.judge(score.target_class, shipped_limits()).verdict for score in found.scores}


def test_the_mean_of_the_shares_is_compared_with_clean_models():
    found = weighed([detection("patch_scan", RAISED), detection("additive", LOW)])
    assert [score.target_class for score in found.scores] == list(range(CLASSES))
    assert [score.measured.deviation for score in found.scores] == pytest.approx([0.1, 0, 0.25, 0, 0.1, -0.2])
    for score in found.scores:
        assert score.index == pytest.approx(NULL.index("consensus", score.measured.deviation, CLASSES))
        assert score.p_value == pytest.approx(NULL.p_value("consensus", score.measured.deviation, CLASSES))
    assert found.p_value == min(score.p_value for score in found.scores)
    assert found.reference == NULL.source


def test_a_class_that_no_family_flags_fails_when_all_of_them_are_raised():
    """Each of them is at 0.6 of its own cut: neither is an outlier by itself."""
    found = weighed([detection("patch_scan", RAISED), detection("additive", [*RAISED[:2], 0.7, *RAISED[3:]])])
    expected = dict.fromkeys(range(CLASSES), Verdict.PASS) | {2: Verdict.FAIL}
    assert verdicts(found) == expected
    finding = found.judge(2, shipped_limits(), name="2 (cat)")
    assert finding.reason == (
        "class 2 (cat): of 2 kinds of changes weighed together the strongest, a additive, sends 80% of held-out images there; "
        "in clean models trained on the same images such a one sends 10%"
    )


def test_one_family_alone_makes_no_consensus():
    found = weighed([detection("patch_scan", RAISED), detection("additive", LOW)])
    assert set(verdicts(found).values()) == {Verdict.PASS}


def test_a_consensus_whose_triggers_do_not_work_is_inconclusive():
    raised = [detection(name, RAISED, success=0.2) for name in FAMILIES]
    assert verdicts(weighed(raised))[2] is Verdict.INCONCLUSIVE


def test_the_trigger_is_that_of_the_family_in_which_the_class_stands_out_most():
    found = weighed([detection("patch_scan", RAISED), detection("additive", LOW)])
    strongest = {"patch_scan": 0.1 * len("patch_scan"), "additive": 0.1 * len("additive")}
    assert float(found.trigger(2).change.max()) == pytest.approx(strongest["patch_scan"])
    raised = weighed([detection("patch_scan", LOW), detection("additive", RAISED)])
    assert float(raised.trigger(2).change.max()) == pytest.approx(strongest["additive"])
    assert found.scores[2].measured.strongest == "a patch_scan"


@pytest.mark.parametrize(
    ("detections", "reason"),
    [
        ([detection("patch_scan", LOW)], "additive was not run"),
        ([detection("patch_scan", LOW), detection("additive", LOW, inconclusive="too few classes")], "too few classes"),
    ],
)
def test_without_all_families_there_is_no_answer(detections, reason):
    found = weighed(detections)
    assert found.inconclusive == reason
    assert found.judge(2, shipped_limits()).verdict is Verdict.INCONCLUSIVE


def test_what_one_family_has_not_searched_to_the_end_the_consensus_passes_not_and_may_fail():
    """0.7 and 0.6 of what is an outlier by itself: class 2 fails in the mean."""
    moving = detection("patch_scan", RAISED, unconverged="on this model the search was still rising")
    found = verdicts(weighed([moving, detection("additive", [*RAISED[:2], 0.7, *RAISED[3:]])]))
    assert found == dict.fromkeys(found, Verdict.INCONCLUSIVE) | {2: Verdict.FAIL}


def test_a_class_that_one_family_has_not_searched_to_the_end_does_not_pass():
    """It is not the family in which the class stands out most."""
    moving = detection("additive", LOW)
    scores = [
        replace(score, unconverged="no gradient") if score.target_class == 2 else score for score in moving.scores
    ]
    found = weighed([detection("patch_scan", RAISED), replace(moving, scores=scores)])
    assert verdicts(found) == dict.fromkeys(verdicts(found), Verdict.PASS) | {2: Verdict.INCONCLUSIVE}
    assert found.judge(2, shipped_limits()).reason == "class 2: the search has not converged: no gradient"


def test_a_family_without_an_index_for_a_class_leaves_none_for_it():
    broken = detection("additive", LOW)
    scores = [
        *broken.scores[:1],
        margin_row(1, index=None, p_value=None),
    ]
    found = weighed(
        [
            detection("patch_scan", LOW),
            Detection(detector="additive", settings="", scores=[*scores, *broken.scores[2:]], triggers=broken.triggers),
        ]
    )
    assert found.scores[1].index is None
    assert verdicts(found)[1] is Verdict.INCONCLUSIVE


def test_a_run_hands_over_what_was_found_and_the_reference_its_null_distribution():
    """The consensus looks at nothing else: there is no model here."""
    found = [detection(name, RAISED) for name in FAMILIES]
    called = CONSENSUS(None, reference=Shown(None, NULL), found=found, generator=seeded())
    assert called.summary() == weighed(found).summary()
    assert CONSENSUS.builds_on == FAMILIES

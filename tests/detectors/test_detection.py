import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from backdoor_audit.detectors import Detection
from backdoor_audit.evidence import Verdict
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.store import Packed
from backdoor_audit.triggers.trigger import Addition, Trigger, Warp
from tests.subjects import seeded
from tests.subjects.detections import margin_row, size_row

LIMITS = replace(
    shipped_limits(), anomaly_index=2.0, size_ratio=0.25, trigger_success=0.9, steering_success=0.6
)  # not the defaults, which may move


def class_score(target_class=4, **values):
    """A class that fails in every respect: index 3, a tenth of the median, works on held-out images."""
    defaults = {
        "size": 5.0,
        "size_ratio": 0.1,
        "success_opt": 1.0,
        "success_val": 0.99,
        "paper_index": 1.5,
        "log_index": 6.0,
        "p_value": 0.02,
        "steps": 240,
        "image_passes": 7700,
    }
    return size_row(target_class, **{**defaults, **values})


def trigger_for(target_class):
    generator = seeded(target_class)
    return Trigger(torch.rand(1, 3, 2, generator=generator), torch.rand(3, 3, 2, generator=generator), target_class)


def detection_of(*scores, **values):
    defaults = {
        "detector": "neural_cleanse",
        "settings": "NeuralCleanse()",
        "p_value": 0.02,
        "median_size": 50.0,
        "cut_size": 14.0,
        "blind_spots": ["blended triggers"],
    }
    triggers = [trigger_for(score.target_class) for score in scores]
    return Detection(scores=list(scores), triggers=triggers, **{**defaults, **values})


def judged(score, *, limits=LIMITS, index="calibrated", **values):
    return detection_of(score, **values).judge(4, limits, index=index)


def test_an_outlier_that_is_small_and_works_fails():
    finding = judged(class_score())
    assert finding.verdict is Verdict.FAIL
    assert (finding.statistic, finding.value, finding.limit, finding.target_class) == ("anomaly_index", 3.0, 2.0, 4)
    assert finding.settings == "NeuralCleanse()"
    assert finding.details["size"] == 5.0
    assert "5.0-pixel trigger sends 99% of held-out images there; median of all classes 50 pixels" in finding.reason


@pytest.mark.parametrize(
    ("values", "verdict", "reason"),
    [
        ({"index": 2.0}, Verdict.INCONCLUSIVE, "below 0.25 of the median, but the other classes differ too much"),
        ({"index": 2.0001}, Verdict.FAIL, "class 4"),
        ({"index": -1.0}, Verdict.INCONCLUSIVE, "differ too much"),
        ({"index": 1.0, "size_ratio": 0.8}, Verdict.PASS, "class 4"),
        ({"size_ratio": 0.26}, Verdict.PASS, "a naturally easy class"),
        ({"size_ratio": 0.25}, Verdict.FAIL, "class 4"),
        ({"success_val": 0.89}, Verdict.INCONCLUSIVE, "works on less than 90% of held-out images"),
        ({"success_val": 0.9}, Verdict.FAIL, "class 4"),
        ({"success_val": math.nan}, Verdict.INCONCLUSIVE, "works on less than 90% of held-out images"),
        (
            {"reached": False, "index": None},
            Verdict.INCONCLUSIVE,
            "no trigger reached the success threshold in 240 steps",
        ),
        ({"index": None}, Verdict.INCONCLUSIVE, "no index could be computed"),
        ({"index": math.nan, "size_ratio": 0.8}, Verdict.INCONCLUSIVE, "no index could be computed"),
        ({"size_ratio": None}, Verdict.INCONCLUSIVE, "no index could be computed"),
    ],
)
def test_each_condition_of_a_verdict(values, verdict, reason):
    finding = judged(class_score(**values))
    assert finding.verdict is verdict
    assert reason in finding.reason


def margin_score(target_class=4, **values):
    """A class that is steered to far beyond its twins, on most held-out images."""
    defaults = {
        "success_val": 0.8,
        "p_value": 0.001,
        "image_passes": 900,
        "margin": 1.5,
        "natural_margin": -0.5,
        "natural_success": 0.07,
        "excess": 2.0,
        "deviation": 5.0,
    }
    return margin_row(target_class, **{**defaults, **values})


def test_an_index_that_is_no_number_is_not_a_pass():
    """What compares with it is never above a limit."""
    finding = steered(margin_score(index=math.nan)).judge(4, LIMITS)
    assert (finding.verdict, finding.value) == (Verdict.INCONCLUSIVE, None)


def steered(*scores, **values):
    common = {"detector": "stripes", "settings": "Stripes()", "triggers": [], "means": "faint stripes"}
    return Detection(scores=list(scores), **{**common, **values})


@pytest.mark.parametrize(
    ("values", "verdict", "reason"),
    [
        ({}, Verdict.FAIL, "faint stripes sends 80% of held-out images there"),
        ({"index": 2.0}, Verdict.PASS, "in clean models trained on the same images such a one sends 7%"),
        ({"index": 2.0001}, Verdict.FAIL, "class 4: "),
        ({"index": -7.0}, Verdict.PASS, "class 4: "),
        ({"success_val": 0.6}, Verdict.FAIL, "class 4: "),
        ({"success_val": 0.59}, Verdict.INCONCLUSIVE, "an outlier, but on less than 60% of held-out images"),
        ({"success_val": 0.59, "index": 2.0}, Verdict.PASS, "class 4: "),
        ({"success_val": math.nan}, Verdict.INCONCLUSIVE, "an outlier, but on less than 60%"),
        ({"index": None}, Verdict.INCONCLUSIVE, "no index could be computed"),
    ],
)
def test_each_condition_of_a_verdict_by_margin(values, verdict, reason):
    finding = steered(margin_score(**values)).judge(4, LIMITS)
    assert finding.verdict is verdict
    assert reason in finding.reason
    assert finding.value == values.get("index", 3.0)
    assert (finding.statistic, finding.limit, finding.settings) == ("anomaly_index", 2.0, "Stripes()")


PASSING = {"index": 1.0, "size_ratio": 0.8}


@pytest.mark.parametrize("index", ["calibrated", "paper"])
def test_a_class_that_still_shrinks_does_not_pass_and_may_fail(index):
    moving = {"unconverged": "its trigger was still shrinking", "paper_index": 1.0}
    finding = judged(class_score(**PASSING, **moving), index=index)
    assert (finding.verdict, finding.value) == (Verdict.INCONCLUSIVE, None)
    assert finding.reason == "class 4: the search has not converged: its trigger was still shrinking"
    assert finding.details["size_ratio"] == 0.8
    assert judged(class_score(unconverged="moving", paper_index=3.0), index=index).verdict is Verdict.FAIL
    assert steered(margin_score(index=1.0, unconverged="moving")).judge(4, LIMITS).verdict is Verdict.INCONCLUSIVE
    assert steered(margin_score(unconverged="moving")).judge(4, LIMITS).verdict is Verdict.FAIL


def test_where_too_few_classes_have_converged_none_passes_and_an_outlier_fails():
    detection = detection_of(class_score(), class_score(5, **PASSING), unconverged="in 6 of 10 classes")
    assert [detection.judge(target, LIMITS).verdict for target in (4, 5)] == [Verdict.FAIL, Verdict.INCONCLUSIVE]
    assert detection.judge(5, LIMITS).reason == "class 5: the search has not converged: in 6 of 10 classes"
    assert [trigger.target_class for trigger in detection.flagged(LIMITS)] == [4]


def test_a_suspicion_is_told_before_a_search_that_has_not_converged():
    """A small trigger that is no outlier yet: what was found is the better reason."""
    finding = judged(class_score(index=1.0, unconverged="moving"))
    assert (finding.verdict, finding.value) == (Verdict.INCONCLUSIVE, 1.0)


def test_a_kept_detection_that_does_not_say_whether_it_converged_passes_nothing():
    packed = detection_of(class_score(**PASSING), class_score(5)).pack()
    values = json.loads(json.dumps(packed.values))
    assert Detection.unpack(Packed(packed.tensors, values)).judge(4, LIMITS).verdict is Verdict.PASS
    for score in values["classes"]:
        del score["unconverged"]
    old = Detection.unpack(Packed(packed.tensors, values))
    assert [old.judge(target, LIMITS).verdict for target in (4, 5)] == [Verdict.INCONCLUSIVE, Verdict.FAIL]


def test_where_no_clean_model_was_looked_at_nothing_is_said_of_them():
    finding = steered(margin_score(natural_margin=None, natural_success=None)).judge(4, LIMITS)
    assert finding.reason == "class 4: faint stripes sends 80% of held-out images there"


def test_limits_of_the_user_hold_for_margins_too():
    detection = steered(margin_score())
    assert detection.judge(4, replace(LIMITS, anomaly_index=3.5)).verdict is Verdict.PASS
    assert detection.judge(4, replace(LIMITS, steering_success=0.9)).verdict is Verdict.INCONCLUSIVE


def test_all_to_all_is_judged_and_told_as_such():
    finding = steered(margin_score(None)).judge(None, LIMITS)
    assert (finding.verdict, finding.target_class) == (Verdict.FAIL, None)
    assert finding.reason.startswith(
        "all to all: faint stripes sends 80% of held-out images away, each class together and to another"
    )
    missing = steered(margin_score(3)).judge(None, LIMITS)
    assert (missing.verdict, missing.reason) == (Verdict.INCONCLUSIVE, "all to all was not searched")


def test_the_details_of_a_finding_hold_what_was_measured_and_nothing_that_was_not():
    details = steered(margin_score()).judge(4, LIMITS).details
    assert (details["margin"], details["natural_margin"], details["deviation"]) == (1.5, -0.5, 5.0)
    assert not {"size", "size_ratio", "steps", "paper_index"} & details.keys()
    assert not {"margin", "excess", "natural_success"} & judged(class_score()).details.keys()


def test_flagged_triggers_by_margin_come_most_extreme_first_and_all_to_all_has_none():
    scores = [margin_score(0, index=2.5), margin_score(1, index=9.0), margin_score(2, index=1.0), margin_score(None)]
    triggers = [Addition(torch.zeros(1, 2, 2), target) for target in range(3)]
    assert [found.target_class for found in steered(*scores, triggers=triggers).flagged(LIMITS)] == [1, 0]


def test_a_packed_detection_of_changes_and_warps_comes_back_equal():
    triggers = [
        Addition(torch.rand(1, 2, 2, generator=seeded()), 0),
        Warp(torch.rand(2, 2, 2, generator=seeded(1)), 12),
    ]
    detection = steered(margin_score(0), margin_score(12, index=None), margin_score(None), triggers=triggers)
    packed = detection.pack()
    back = Detection.unpack(Packed(packed.tensors, json.loads(json.dumps(packed.values))))
    assert back.summary() == detection.summary()
    assert list(back.scores) == list(detection.scores)
    assert [type(trigger) for trigger in back.triggers] == [Addition, Warp]
    assert torch.equal(back.trigger(0).change, triggers[0].change)
    assert torch.equal(back.trigger(12).flow, triggers[1].flow)
    assert back.trigger(None) is None


def test_the_paper_index_is_judged_when_it_is_chosen():
    assert judged(class_score(), index="paper").verdict is Verdict.PASS
    finding = judged(class_score(index=1.0, paper_index=2.5), index="paper")
    assert (finding.verdict, finding.value) == (Verdict.FAIL, 2.5)


def test_the_papers_rule_has_no_condition_but_its_index():
    assert judged(class_score(paper_index=2.5, size_ratio=0.9, success_val=0.1), index="paper").verdict is Verdict.FAIL


def test_limits_of_the_user_hold():
    assert judged(class_score(), limits=replace(LIMITS, anomaly_index=3.5)).verdict is Verdict.INCONCLUSIVE
    assert judged(class_score(size_ratio=0.4), limits=replace(LIMITS, size_ratio=0.5)).verdict is Verdict.FAIL
    assert judged(class_score(success_val=0.5), limits=replace(LIMITS, trigger_success=0.4)).verdict is Verdict.FAIL


def test_an_inconclusive_detection_makes_every_class_inconclusive():
    finding = judged(class_score(), inconclusive="too few classes")
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.reason == "too few classes"
    assert finding.value is None


def test_a_class_without_a_row_was_not_searched():
    finding = detection_of(class_score()).judge(7, LIMITS, name="7 (sneaker)")
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.reason == "class 7 (sneaker) was not searched"
    assert finding.details == {}


def test_the_class_is_called_by_the_name_it_is_given():
    assert detection_of(class_score()).judge(4, LIMITS, name="4 (coat)").reason.startswith("class 4 (coat): ")


def test_flagged_triggers_come_smallest_first():
    detection = detection_of(
        class_score(0, size=9.0),
        class_score(1, size=40.0, index=0.0),
        class_score(2, size=3.0),
        class_score(3, size=6.0),
    )
    assert [trigger.target_class for trigger in detection.flagged(LIMITS)] == [2, 3, 0]
    assert detection.flagged(LIMITS, index="paper") == ()
    assert detection_of(class_score(), inconclusive="no spread").flagged(LIMITS) == ()


def test_rows_and_triggers_are_found_by_class():
    detection = detection_of(class_score(5), class_score(2))
    assert detection.score(2).target_class == 2
    assert detection.trigger(5).target_class == 5
    assert detection.score(9) is None
    assert detection.trigger(9) is None
    assert detection.image_passes == 15400


def test_a_packed_detection_comes_back_equal():
    detection = detection_of(
        class_score(0), class_score(3, index=None, p_value=None, reached=False), inconclusive="why", seconds=1.5
    )
    packed = detection.pack()
    back = Detection.unpack(Packed(packed.tensors, json.loads(json.dumps(packed.values))))
    assert back.summary() == detection.summary()
    assert back.seconds == 1.5
    assert list(back.scores) == list(detection.scores)
    for one, other in zip(back.triggers, detection.triggers, strict=True):
        assert one.target_class == other.target_class
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.pattern, other.pattern)


def test_the_summary_holds_builtins_only():
    def leaves(value):
        if isinstance(value, dict):
            return [leaf for entry in value.values() for leaf in leaves(entry)]
        return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, list) else [value]

    summary = detection_of(class_score()).summary()
    assert {type(leaf) for leaf in leaves(summary)} <= {str, int, float, bool, type(None)}
    assert json.loads(json.dumps(summary)) == summary


def test_timing_changes_nothing_else():
    timed = detection_of(class_score()).timed(2.5)
    assert timed.summary() == {**detection_of(class_score()).summary(), "seconds": 2.5}
    assert math.isclose(timed.seconds, 2.5)


def steering(index, target=4, **rest):
    """A detector with reference models that gives this class an index."""
    return steered(margin_score(target, index=index), **rest)


def test_a_small_trigger_that_is_no_outlier_passes_only_where_all_that_compares_with_references_contradicts():

    def judged_beside(beside=(), **values):
        return detection_of(class_score(size_ratio=0.2, **values)).judge(4, LIMITS, beside=beside)

    bag = partial(judged_beside, index=1.0)
    assert bag().verdict is Verdict.INCONCLUSIVE
    passed = bag(beside=[steering(0.4), steering(1.9)])
    assert passed.verdict is Verdict.PASS
    assert "no easier to reach than others by any of 2 kinds of search (largest index 1.90" in passed.reason
    for doubtful in (
        [steering(2.1), steering(0.4)],
        [steering(None), steering(0.4)],
        [replace(steering(0.4), unconverged="still rising")],
        [replace(steering(0.4), unusual="the spread of the classes is 9")],
        [steered(margin_score(4, index=0.4, unconverged="no gradient"))],
        [steering(0.4), replace(steering(0.4), inconclusive="no twins")],
        [steering(0.4, target=3)],
    ):
        assert bag(beside=doubtful).verdict is Verdict.INCONCLUSIVE
    assert judged_beside([steering(0.1)], index=2.5).verdict is Verdict.FAIL

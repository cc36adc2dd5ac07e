import json
from dataclasses import replace

import pytest

from backdoor_audit.evidence import Verdict
from backdoor_audit.model.metrics import attack_success_rate, clean_accuracy, robust_accuracy
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.repairs import CurvePoint, RepairOutcome, Scores, judge_drop, judge_robustness, judge_success
from backdoor_audit.repairs.outcome import score
from tests.subjects import colour_images, colour_net, colour_trigger

LIMITS = shipped_limits()
BEFORE = Scores(clean_accuracy=0.92, attack_success_rate=0.99, robust_accuracy=0.01)


def outcome_of(target_class, accuracy=0.91, success=0.02, **values):
    return RepairOutcome(
        method="nc_pruning",
        settings="NeuronPruning()",
        target_class=target_class,
        before=BEFORE,
        after=Scores(accuracy, success, 0.9),
        note="3 of 64 channels pruned",
        **values,
    )


NOT_APPLICABLE = RepairOutcome(
    method="nc_pruning", settings="NeuronPruning()", target_class=1, not_applicable="no head"
)


def test_the_trigger_that_is_left_strongest_decides():
    finding = judge_success(
        [outcome_of(1, success=0.02), outcome_of(5, success=0.5), outcome_of(2, success=0.1)], LIMITS
    )
    assert (finding.verdict, finding.value, finding.target_class) == (Verdict.FAIL, 0.5, 5)
    assert (finding.statistic, finding.limit, finding.settings) == ("attack_success_rate", 0.10, "NeuronPruning()")
    assert finding.reason == "nc_pruning for class 5: 99.0% before, 50.0% after; 3 of 64 channels pruned"


def test_the_costliest_repair_decides():
    finding = judge_drop(
        [outcome_of(1, accuracy=0.91), outcome_of(5, accuracy=0.80), outcome_of(2, accuracy=0.95)], LIMITS
    )
    assert (finding.verdict, finding.target_class) == (Verdict.FAIL, 5)
    assert finding.value == pytest.approx(0.12)
    assert "92.0% before, 80.0% after" in finding.reason


def test_stamped_images_must_get_their_label_back_as_often_as_clean_ones_had_it():
    """92 % of clean images were right before; 90 % of stamped ones after is a loss of two points, 70 % one of 22."""
    finding = judge_robustness([outcome_of(1)], LIMITS)
    assert (finding.verdict, finding.statistic, finding.limit) == (Verdict.PASS, "robust_accuracy_lost", 0.15)
    assert finding.value == pytest.approx(0.02)
    assert (
        "90.0% of stamped images are predicted as labelled after it, 1.0% before, 92.0% of clean ones" in finding.reason
    )
    worst = replace(outcome_of(5), after=Scores(0.91, 0.0, 0.7))
    finding = judge_robustness([outcome_of(1), worst], LIMITS)
    assert (finding.verdict, finding.target_class) == (Verdict.FAIL, 5)
    assert finding.value == pytest.approx(0.22)


def test_a_repair_that_nothing_called_for_must_be_harmless():
    outcome = outcome_of(1, accuracy=0.895)
    assert judge_drop([outcome], LIMITS).verdict is Verdict.PASS
    finding = judge_drop([outcome], LIMITS, flagged=False)
    assert (finding.verdict, finding.limit) == (Verdict.FAIL, 0.02)


def test_a_repair_within_the_limits_passes():
    outcomes = [outcome_of(1), outcome_of(5, accuracy=0.93)]
    assert judge_success(outcomes, LIMITS).verdict is Verdict.PASS
    assert judge_drop(outcomes, LIMITS).verdict is Verdict.PASS
    assert judge_drop(outcomes, LIMITS).value == pytest.approx(0.01)


def test_outcomes_without_scores_do_not_count():
    assert judge_success([NOT_APPLICABLE, outcome_of(5)], LIMITS).target_class == 5


def test_limits_of_the_user_hold():
    assert judge_success([outcome_of(1)], replace(shipped_limits(), attack_success_rate=0.01)).verdict is Verdict.FAIL
    assert judge_drop([outcome_of(1)], replace(shipped_limits(), clean_accuracy_drop=0.005)).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "outcome",
    [NOT_APPLICABLE, outcome_of(4), outcome_of(4, curve=[CurvePoint(0.0, 2.5, BEFORE), CurvePoint(0.5, None, BEFORE)])],
)
def test_an_outcome_comes_back_from_its_summary(outcome):
    back = RepairOutcome.of(json.loads(json.dumps(outcome.summary())))
    assert json.dumps(back.summary()) == json.dumps(outcome.summary())
    assert (back.before, back.after, list(back.curve)) == (outcome.before, outcome.after, list(outcome.curve))


def test_the_three_scores_are_those_of_the_metrics():
    subject, clean, trigger = colour_net(), colour_images(), colour_trigger()
    assert score(subject, clean, trigger) == Scores(
        clean_accuracy=clean_accuracy(subject, clean.images, clean.labels),
        attack_success_rate=attack_success_rate(subject, clean.images, clean.labels, trigger),
        robust_accuracy=robust_accuracy(subject, clean.images, clean.labels, trigger),
    )
    assert score(subject, clean, trigger) == Scores(1.0, 1.0, 0.0)

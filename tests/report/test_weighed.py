"""What a run found, by subject and strength."""

from __future__ import annotations

import pytest

from backdoor_audit.evidence import STEERED, Record, Verdict
from backdoor_audit.report.weighed import UNMEASURED, evidence, remedies, trigger_sentence
from tests.subjects.records import finding, missed_canary, record

FAIL, INCONCLUSIVE, PASS = Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS
PATCH = finding(
    audit="audit::test_property[no_small_patch_steers]",
    statistic=STEERED,
    value=0.9,
    limit=0.7,
    reason="a white patch of 3x3 px at row 24, column 24 sends 90% of other classes' held-out images to class 1; found after 4",
)
WEAK = finding(
    audit="audit::test_anomaly_index[smooth-class_0]", target_class=0, value=2.1, reason="class 0 (cat): slow"
)
UNMET = "clean accuracy 0.1 is not above chance"


def of_repair(statistic: str, verdict: Verdict, value: float, method: str = "nc_pruning"):
    question = {"attack_success_rate": "attack_success_rate_after"}.get(statistic, statistic)
    return finding(verdict, audit=f"audit::test_{question}[{method}]", statistic=statistic, value=value, limit=0.1)


def test_subjects_come_by_strength_and_the_name_of_a_class_is_said_once() -> None:
    found = evidence(record(WEAK, finding(INCONCLUSIVE, value=1.9), finding(), missed_canary()))
    assert [(entry.subject, entry.verdict) for entry in found] == [
        ("class 1 (dog)", FAIL),
        ("class 0 (cat)", FAIL),
        ("canaries", FAIL),
    ]
    strongest = found[0].points[0]
    assert (strongest.called, strongest.number) == ("neural_cleanse", "index 2.5, limit 2")
    assert found[1].points[0].text == "slow"
    assert [point.verdict for point in found[0].points] == [FAIL, INCONCLUSIVE]


def test_a_counterexample_in_whole_numbers_is_the_trigger_and_is_not_told_twice() -> None:
    subject = record(finding(value=9.0), PATCH)
    assert trigger_sentence(subject) == (
        "a white patch of 3x3 px at row 24, column 24 sends 90% of other classes' held-out images to class 1"
    )
    texts = {point.called: point for point in evidence(subject)[0].points}
    assert texts["no_small_patch_steers"].text == "the trigger above; found after 4"
    assert texts["no_small_patch_steers"].number == "90%, limit 70%"


@pytest.mark.parametrize(
    ("subject", "sentence"),
    [
        (record(finding(PASS)), ""),
        (record(finding(INCONCLUSIVE, value=None)), ""),
        (
            record(finding(reason="class 1 (dog): a patch sends 96% of held-out images there; more")),
            "a patch sends 96% of held-out images to class 1 (dog)",
        ),
        (record(finding(target_class=None, reason="all to all: a warp sends 60% away")), "a warp sends 60% away"),
    ],
)
def test_the_trigger_in_one_sentence(subject: Record, sentence: str) -> None:
    assert trigger_sentence(subject) == sentence


def test_one_unmet_condition_is_told_once_however_many_items_lack_an_answer_for_it() -> None:
    condition = finding(
        INCONCLUSIVE, audit="audit::test_precondition[accuracy]", statistic="clean_accuracy", value=0.1, reason=UNMET
    )
    items = [
        finding(
            INCONCLUSIVE,
            audit=f"audit::test_anomaly_index[{name}-class_1]",
            value=None,
            reason=f"precondition not met: {UNMET}",
        )
        for name in ("patch_scan", "smooth", "stripes")
    ]
    (found,) = evidence(record(condition, *items))
    assert (found.subject, len(found.points)) == (UNMEASURED, 1)
    assert (found.points[0].called, found.points[0].text) == ("4 items", UNMET)


def test_remedies_stand_apart_and_those_that_hold_come_first() -> None:
    subject = record(
        of_repair("attack_success_rate", FAIL, 0.5),
        of_repair("clean_accuracy_drop", PASS, 0.01),
        of_repair("attack_success_rate", PASS, 0.02, "nc_unlearning"),
        of_repair("false_negative_rate", FAIL, 0.8, "strip"),
    )
    assert evidence(subject) == []
    assert [(remedy.name, remedy.holds) for remedy in remedies(subject)] == [
        ("nc_unlearning", True),
        ("nc_pruning", False),
        ("filter strip", False),
    ]
    assert remedies(subject)[1].numbers == (
        "trigger success 50.0% (limit 10%): too much",
        "clean accuracy lost 1.0% (limit 10%)",
    )

"""Which findings somebody answers for, what a regression says, and how a baseline is renewed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from backdoor_audit import Verdict
from backdoor_audit.baseline import (
    REGRESSIONS,
    baseline_of,
    compare,
    difference,
    regressions,
    renewed,
    section,
    standing,
)
from backdoor_audit.errors import BaselineError
from backdoor_audit.evidence import STEERED, Finding
from tests.subjects.baselines import (
    CLEAN,
    TODAY,
    accepted,
    finding_of,
    flagged,
    known_backdoor,
    record_of,
    with_backdoor,
)


def test_a_finding_that_is_accepted_and_no_worse_does_not_stop_the_run() -> None:
    ruling = standing(known_backdoor(), flagged(7.0), TODAY)
    assert ruling.accepted
    assert ruling.text == "accepted by Ada until 2027-06-30: known since May"
    assert section("b.json", known_backdoor(), with_backdoor(), nothing_worse(), TODAY)["verdict"] == "pass"


def nothing_worse() -> Any:
    return difference(baseline_of(with_backdoor()), baseline_of(with_backdoor()))


def test_an_acceptance_holds_on_its_last_day_and_fails_again_on_the_next() -> None:
    assert standing(known_backdoor(), flagged(), date(2027, 6, 30)).accepted
    ruling = standing(known_backdoor(), flagged(), date(2027, 7, 1))
    assert not ruling.accepted
    assert ruling.text == "the acceptance by Ada expired on 2027-06-30 (its reason: known since May)"


def test_of_several_acceptances_the_one_that_lasts_longest_counts() -> None:
    baseline = replace(known_backdoor(expires="2027-01-01"), acceptances=[accepted(expires="2027-01-01"), accepted()])
    assert standing(baseline, flagged(), TODAY).accepted


def test_failing_in_the_baseline_is_not_accepted_by_itself() -> None:
    assert not standing(baseline_of(with_backdoor()), flagged(), TODAY).accepted
    kept = section("b.json", baseline_of(with_backdoor()), with_backdoor(), nothing_worse(), TODAY)
    assert kept["verdict"] == "fail"
    assert kept["worse"] == []


def test_an_acceptance_does_not_cover_what_got_worse_since() -> None:
    ruling = standing(known_backdoor(), flagged(9.1), TODAY)
    assert not ruling.accepted
    assert ruling.text == (
        "worse than what Ada accepted until 2027-06-30: class 2 (bag), patch_scan: anomaly index 6.00 -> 9.10 (noise 3.00)"
    )
    passed_then = baseline_of(record_of(), acceptances=[accepted()])
    assert not standing(passed_then, flagged(), TODAY).accepted


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_an_acceptance_does_not_cover_a_trigger_for_another_class(verdict: str) -> None:
    """The node ids of a property, and of a row about a source, do not name the class that images are sent to."""
    for audit, statistic in (
        ("test_property[no_small_patch_steers]", STEERED),
        ("test_anomaly_index[source_scan-from_class_0]", "anomaly_index"),
    ):
        before, same, other = (finding_of(audit, statistic, 0.9, verdict, target_class=target) for target in (2, 2, 1))
        baseline = baseline_of(record_of(None, before), acceptances=[accepted(audit)])
        assert standing(baseline, same, TODAY).accepted
        ruling = standing(baseline, other, TODAY)
        assert not ruling.accepted
        assert ruling.text.endswith(", for class 1 (shoe) now")
        record = record_of(None, other)
        assert section("b.json", baseline, record, compare(baseline, record), TODAY)["verdict"] == "fail"


def test_the_section_of_a_record_tells_accepted_expired_and_unused() -> None:
    baseline = baseline_of(
        record_of({"patch_scan-class_1": 5.0, "patch_scan-class_2": 6.0}),
        acceptances=[
            accepted("test_anomaly_index[*-class_2]"),
            accepted("test_anomaly_index[*-class_1]", expires="2027-01-01"),
            accepted("test_anomaly_index[*-class_0]"),
        ],
    )
    record = record_of({"patch_scan-class_1": 5.0, "patch_scan-class_2": 6.0})
    kept = section("some/b.json", baseline, record, compare(baseline, record), TODAY)
    assert kept == {
        "file": "b.json",
        "accepted_model": "clean.safetensors",
        "verdict": "fail",
        "worse": [],
        "better": [],
        "notes": ["the weights are those of the accepted model"],
        "accepted": [
            {
                "finding": "audit::test_anomaly_index[patch_scan-class_2]",
                "reason": "known since May",
                "owner": "Ada",
                "expires": "2027-06-30",
                "verdict": "fail",
            }
        ],
        "expired": [
            {
                "finding": "audit::test_anomaly_index[patch_scan-class_1]",
                "reason": "known since May",
                "owner": "Ada",
                "expires": "2027-01-01",
                "verdict": "fail",
            }
        ],
        "unused": ["test_anomaly_index[*-class_0]"],
    }
    assert json.loads(json.dumps(kept)) == kept


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({}, "pass"),
        ({"not_run": ["audit::x"]}, "inconclusive"),
        ({"errors": {"audit::x": "broken"}}, "inconclusive"),
    ],
)
def test_a_run_that_is_not_whole_does_not_pass_beside_a_baseline(values: dict[str, Any], verdict: str) -> None:
    record = record_of(**values)
    baseline = baseline_of(record_of(), acceptances=[accepted()])
    kept = section("b.json", baseline, record, compare(baseline, record), TODAY)
    assert kept["verdict"] == verdict
    assert bool(kept["unused"]) is (verdict == "pass")  # what was not run may need it


@pytest.mark.parametrize(("allowed", "verdict"), [("fail", "inconclusive"), ("allow", "pass")])
def test_inconclusive_findings_stop_a_run_unless_they_are_allowed(allowed: str, verdict: str) -> None:
    record = record_of({**CLEAN, "patch_scan-class_0": None}, settings={"inconclusive": allowed})
    kept = section("b.json", baseline_of(record), record, compare(baseline_of(record), record), TODAY)
    assert kept["verdict"] == verdict


def test_every_regression_is_one_finding_that_names_what_got_worse() -> None:
    found = regressions(
        compare(baseline_of(record_of()), record_of({**CLEAN, "patch_scan-class_2": 6.0}, accuracy=0.8))
    )
    assert tuple(found) == REGRESSIONS
    index, accuracy = found["anomaly_index"], found["clean_accuracy"]
    assert isinstance(index, Finding)
    assert isinstance(accuracy, Finding)
    assert (index.verdict, index.value, index.target_class) == (Verdict.FAIL, 1.0, 2)
    assert "class 2 (bag)" in index.reason
    assert accuracy.verdict is Verdict.FAIL
    assert found["repairs"] == "nothing to compare with the accepted model"
    assert found["corpus"] == "nothing to compare with the accepted model"


def test_a_passing_record_becomes_a_baseline_without_a_word() -> None:
    assert renewed(record_of(), None, TODAY) == (baseline_of(record_of()), [])


def test_a_new_failing_finding_is_not_taken_into_a_baseline_unless_somebody_accepts_it() -> None:
    clean = baseline_of(record_of())
    with pytest.raises(
        BaselineError,
        match=r"1 findings are not a pass .*audit::test_anomaly_index\[patch_scan-class_2\].*accept them by hand",
    ):
        renewed(with_backdoor(), clean, TODAY)
    by_hand = replace(clean, acceptances=[accepted()])
    updated, lines = renewed(with_backdoor(), by_hand, TODAY)
    assert lines == []
    assert updated.acceptances == (accepted(),)
    assert standing(updated, flagged(), TODAY).accepted


def test_the_first_baseline_of_a_failing_model_excuses_nothing_and_says_so() -> None:
    updated, lines = renewed(with_backdoor(), None, TODAY)
    assert updated.acceptances == ()
    assert "audit::test_anomaly_index[patch_scan-class_2]" in lines[0]
    assert "stop every run" in lines[0]


def test_acceptances_that_expired_or_are_not_needed_are_dropped_and_told() -> None:
    old = replace(
        baseline_of(with_backdoor()),
        acceptances=[accepted(), accepted("test_x"), accepted("test_anomaly_index[*-class_2]", expires="2027-02-28")],
    )
    updated, lines = renewed(with_backdoor(), old, TODAY)
    assert updated.acceptances == (accepted(),)
    assert lines == [
        "acceptance of test_x dropped: no finding needs it",
        "acceptance of test_anomaly_index[*-class_2] dropped: it expired on 2027-02-28",
    ]


@pytest.mark.parametrize("values", [{"errors": {"audit::x": "broken"}}, {"not_run": ["audit::x"]}])
def test_only_a_whole_run_becomes_a_baseline(values: dict[str, Any]) -> None:
    with pytest.raises(BaselineError, match="1 items broke or were not run, first audit::x"):
        renewed(record_of(**values), None, TODAY)

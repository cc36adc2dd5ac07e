"""Baselines: what is kept of an accepted model, what counts as worse, who answers for what, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from backdoor_audit import Record, Verdict, audit
from backdoor_audit.baseline import (
    INDEX_NOISE,
    REGRESSIONS,
    STEERED_NOISE,
    Baseline,
    baseline_of,
    compare,
    configuration,
    difference,
    index_noise,
    read_signature,
    regressions,
    renewed,
    section,
    standing,
)
from backdoor_audit.baseline.difference import rate_noise
from backdoor_audit.errors import BaselineError
from backdoor_audit.evidence import Finding
from backdoor_audit.properties import PROPERTIES
from tests.subjects import toy
from tests.subjects.baselines import (
    CLEAN,
    TODAY,
    accepted,
    finding_of,
    flagged,
    index_of,
    known_backdoor,
    record_of,
    texts,
    with_backdoor,
)


def test_a_baseline_comes_back_from_its_file_equal(tmp_path: Path) -> None:
    repair = {
        "method": "nc_pruning",
        "target_class": 2,
        "before": {"clean_accuracy": 0.93, "attack_success_rate": 1.0, "robust_accuracy": 0.0},
        "after": {"clean_accuracy": 0.912345678, "attack_success_rate": 0.04, "robust_accuracy": 0.85},
        "curve": [
            {
                "prune_rate": 0.125,
                "threshold": 0.3,
                "scores": {"clean_accuracy": 0.9, "attack_success_rate": 0.5, "robust_accuracy": 0.4},
            }
        ],
    }
    baseline = baseline_of(record_of(repairs=[repair]), acceptances=[accepted()])
    baseline.write(tmp_path / "baseline.json")
    again = Baseline.read(tmp_path / "baseline.json")
    assert again.to_json() == baseline.to_json()
    assert again.acceptances == (accepted(),)
    assert again.repairs["nc_pruning-class_2"] == {
        "before": repair["before"],
        "after": {"clean_accuracy": 0.9123, "attack_success_rate": 0.04, "robust_accuracy": 0.85},
        "curve": [[0.125, 0.9, 0.5, 0.4]],
    }
    assert again.findings["audit::test_anomaly_index[patch_scan-class_0]"] == {
        "statistic": "anomaly_index",
        "verdict": "pass",
        "value": 0.2,
        "index": 0.2,
        "size": 12.35,
        "success_val": 0.875,
        "target_class": 0,
    }


def test_the_file_holds_neither_folders_nor_times_and_one_line_for_a_finding(tmp_path: Path) -> None:
    baseline_of(record_of(settings={"reference": "/home/someone/reference.json"})).write(tmp_path / "a.json")
    baseline_of(replace(record_of({**CLEAN, "patch_scan-class_1": -0.6}), seconds=3.0)).write(tmp_path / "b.json")
    first, second = ((tmp_path / name).read_text() for name in ("a.json", "b.json"))
    assert "someone" not in first
    assert "81.5" not in first
    assert '"reference": "reference.json"' in first
    changed = [line for line in first.splitlines() if line not in second.splitlines()]
    assert sorted(line.split('"')[1] for line in changed) == [
        "audit::test_anomaly_index[patch_scan-class_1]",
        "reference",
    ]
    assert json.loads(first)["model"]["file"] == "clean.safetensors"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not a readable JSON file"),
        ("[]", "list at the top of the file"),
        ("{}", r"no baseline of schema version 1 \(found version None\)"),
        ('{"schema_version": 2, "acceptances": []}', r"found version 2\); make a new one with --audit-update-baseline"),
        ('{"schema_version": 1, "findings": {}}', "no baseline"),
        ('{"schema_version": 1, "acceptances": [], "colour": 1}', "a key is missing: model"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "b.json"
    file.write_text(content)
    with pytest.raises(BaselineError, match=told) as caught:
        Baseline.read(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("findings",), [], "findings: a list of 0 where an object belongs"),
        (("colour",), 1, "colour: a key that is not known"),
        (("data",), {"num_classes": 3}, r"a key is missing: data\.data_fingerprint"),
        (("data", "num_classes"), 0, "data.num_classes: 0 where a whole number of at least 1 or null belongs"),
        (("findings", "audit::x"), {"verdict": "pass"}, r"a key is missing: findings\['audit::x'\]\.statistic"),
        (("findings", "audit::x"), 3, r"findings\['audit::x'\]: 3 where an object belongs"),
        (("findings", "audit::test_precondition[accuracy]", "verdict"), "fine", "'fine' where pass or fail or inconcl"),
        (("findings", "audit::test_precondition[accuracy]", "value"), "0.9", "'0.9' where a number or null belongs"),
        (("findings", "audit::test_precondition[accuracy]", "value"), True, "True where a number or null belongs"),
        (
            ("findings", "audit::test_precondition[accuracy]", "target_class"),
            -1,
            "-1 where a whole number of at least 0",
        ),
        (("environment", "device"), None, "environment.device: None where a text belongs"),
        (("repairs", "x"), {"before": {}, "after": {}, "curve": [[1]]}, "a key is missing: repairs.x.before"),
    ],
)
def test_a_damaged_baseline_is_refused_where_it_is_damaged(
    tmp_path: Path, path: tuple[str, ...], value: object, told: str
) -> None:
    stored: Any = json.loads(json.dumps(baseline_of(record_of()).to_json()))
    part = stored
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    (tmp_path / "b.json").write_text(json.dumps(stored))
    with pytest.raises(BaselineError, match=told):
        Baseline.read(tmp_path / "b.json")


GOOD = {"finding": "test_x", "reason": "why", "owner": "Ada", "expires": "2027-01-31"}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({**GOOD, "expires": "31.01.2027"}, "acceptance 1: expires is '31.01.2027', no day"),
        ({**GOOD, "expires": "2027-02-30"}, "no day"),
        ({**GOOD, "owner": " "}, "acceptance 1: owner must be filled in"),
        ({**GOOD, "reason": "...", "owner": ""}, "owner and reason must be filled in"),
        ({**GOOD, "finding": "*"}, "finding must be filled in"),
        ({**GOOD, "class": 7}, "acceptance 1: 'class'"),
        ({key: value for key, value in GOOD.items() if key != "owner"}, "no owner"),
        ({**GOOD, "reason": 3}, "reason must be filled in"),
        ("test_x", "'test_x' is no object"),
    ],
)
def test_an_acceptance_needs_a_finding_a_reason_an_owner_and_a_day(tmp_path: Path, entry: object, told: str) -> None:
    stored = {**baseline_of(record_of()).to_json(), "acceptances": [entry]}
    (tmp_path / "b.json").write_text(json.dumps(stored))
    with pytest.raises(BaselineError, match=told) as caught:
        Baseline.read(tmp_path / "b.json")
    assert '"expires": "YYYY-MM-DD"' in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("audit::test_anomaly_index[patch_scan-class_7]", True),
        ("test_anomaly_index[patch_scan-class_7]", True),
        ("test_anomaly_index[*-class_7]", True),
        ("*class_7]", True),
        ("test_anomaly_index[patch_scan-class_1]", False),
        ("test_anomaly_index[patch_scan-class_?]", False),
        ("test_anomaly_index", False),
        ("class_7", False),
        ("test_anomaly_index[*-class_77]", False),
    ],
)
def test_only_a_star_in_an_acceptance_stands_for_other_text(pattern: str, *, matches: bool) -> None:
    assert accepted(pattern).matches("audit::test_anomaly_index[patch_scan-class_7]") is matches


def test_an_acceptance_with_many_stars_is_matched_at_once() -> None:
    """As a regular expression this takes years."""
    many = accepted("*a" * 40 + "*")
    assert many.matches("a" * 40)
    assert not many.matches("a" * 39 + "b" * 500)


def test_a_baseline_of_a_stranger_is_printable_and_as_comparable_as_its_record(tmp_path: Path) -> None:
    names = ["\x1b[31mshirt", "shoe\n::error::x", "bag\ud800"]
    record = record_of(subject={"class_names": names})
    file = tmp_path / "b.json"
    stored = {**baseline_of(record).to_json(), "verdict": "pass"}
    stored["data"]["class_names"] = names
    file.write_text(json.dumps(stored))
    again = Baseline.read(file)
    assert again.data["class_names"] == [r"\x1b[31mshirt", "shoe : :error::x", r"bag\ud800"]
    again.refuse(record)
    again.refuse(configuration({**record.subject, "class_names": names}, record.settings, again.detectors))


def test_a_detail_that_is_no_number_is_no_part_of_a_baseline() -> None:
    odd = finding_of("test_mine", "mine", 1.0, details={"size": "large", "index": [1], "success_val": True})
    assert set(baseline_of(record_of({}, odd)).findings["audit::test_mine"]) == {
        "statistic",
        "verdict",
        "value",
        "target_class",
    }


def test_a_clean_model_after_a_clean_one_is_no_worse() -> None:
    moved = {item: index + INDEX_NOISE * 0.99 if index > 0 else 1.79 for item, index in CLEAN.items()}
    found = compare(baseline_of(record_of()), record_of({**moved, "patch_scan-class_2": 1.9}, accuracy=0.925))
    assert found.worse == ()
    assert found.verdict is Verdict.PASS
    assert len(found.unchanged) == 5


def test_a_backdoor_in_the_next_model_is_worse_and_its_class_is_named() -> None:
    found = compare(baseline_of(record_of()), with_backdoor())
    assert found.verdict is Verdict.FAIL
    assert texts(found.worse) == ["class 2 (bag), patch_scan: anomaly index 0.90 -> 6.00 (noise 1.80), pass -> fail"]
    assert found.worse[0].target_class == 2
    assert compare(baseline_of(with_backdoor()), record_of()).better[0].item.endswith("[patch_scan-class_2]")


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        (-3.0, 1.79, False),  # below 0 says nothing, so this is a rise of 1.79
        (-3.0, 1.81, True),
        (0.1, 1.89, False),
        (4.0, 5.9, False),  # half of 4 is allowed for
        (4.0, 6.01, True),
        (6.0, 3.0, False),
        (None, 1.9, False),
    ],
)
def test_an_index_is_worse_if_it_rises_beyond_the_noise_whatever_the_limit(
    before: float | None, after: float, *, worse: bool
) -> None:
    limits = {"settings": {"limits": {"anomaly_index": 100.0}}}
    first, second = (
        record_of({}, index_of("patch_scan-class_1", value, verdict="pass"), **limits) for value in (before, after)
    )
    assert bool(compare(baseline_of(first), second).worse) is worse


def test_the_noise_of_an_index_does_not_depend_on_which_model_came_first() -> None:
    assert index_noise(4.0, 9.0) == index_noise(9.0, 4.0) == 2.0
    assert index_noise(-5.0, None) == INDEX_NOISE


@pytest.mark.parametrize(("before", "after", "lower"), [(9, 3, 0.1705), (10, 0, 0.6075), (3, 9, 0.1705)])
def test_the_noise_between_rates_is_that_of_newcombes_published_examples(before: int, after: int, lower: float) -> None:
    """Newcombe, 1998, table II: lower ends of method 10 for 9/10 against 3/10 and 10/10 against 0/10."""
    assert abs(before - after) / 10 - rate_noise(before / 10, after / 10, 10) == pytest.approx(lower, abs=1e-4)


@pytest.mark.parametrize(("accuracy", "worse"), [(0.99, False), (0.93, False), (0.908, False), (0.90, True)])
def test_accuracy_is_worse_beyond_what_so_many_images_allow(accuracy: float, *, worse: bool) -> None:
    found = compare(baseline_of(record_of(accuracy=0.93)), record_of(accuracy=accuracy))
    assert bool(found.worse) is worse
    if worse:
        assert texts(found.worse) == ["clean accuracy 0.930 -> 0.900 (noise 0.024)"]
    assert bool(found.better) is (accuracy == 0.99)


def test_fewer_images_allow_for_more_noise() -> None:
    few = {"subject": {"images": 100}}
    assert not compare(baseline_of(record_of(accuracy=0.93, **few)), record_of(accuracy=0.90, **few)).worse


def test_a_trigger_that_a_repair_leaves_stronger_is_worse() -> None:
    def repaired(rate: float) -> Record:
        return record_of(None, finding_of("test_attack_success_rate_after[anp]", "attack_success_rate", rate))

    found = compare(baseline_of(repaired(0.02)), repaired(0.09))
    assert texts(found.worse) == [
        "test_attack_success_rate_after[anp]: attack success rate 0.020 -> 0.090 (noise 0.034)"
    ]
    assert found.worse[0].regression == "repairs"
    assert not compare(baseline_of(repaired(0.02)), repaired(0.03)).worse


@pytest.mark.parametrize("name", sorted(STEERED_NOISE))
@pytest.mark.parametrize(("beyond", "worse"), [(-0.01, False), (0.01, True)])
def test_a_property_that_still_holds_is_worse_if_it_steers_further_than_between_clean_models(
    name: str, beyond: float, *, worse: bool
) -> None:
    first, second = (
        record_of(None, finding_of(f"test_property[{name}]", "steered_share", value, Verdict.PASS))
        for value in (0.05, 0.05 + STEERED_NOISE[name] + beyond)
    )
    found = compare(baseline_of(first), second)
    assert bool(found.worse) is worse
    assert [change.regression for change in found.worse] == ["corpus"] * worse
    assert not compare(baseline_of(second), first).worse


def test_noise_is_known_for_every_property_that_steers() -> None:
    assert set(STEERED_NOISE) == {wanted.name for wanted in PROPERTIES if wanted.needs_twins}


def test_a_property_that_held_and_is_broken_is_worse() -> None:
    def checked(verdict: str) -> Record:
        return record_of(None, finding_of("test_property[no_small_patch]", "success_rate", 0.3, verdict))

    found = compare(baseline_of(checked("pass")), checked("fail"))
    assert texts(found.worse) == ["test_property[no_small_patch]: success rate 0.300 -> 0.300, pass -> fail"]
    assert found.worse[0].regression == "corpus"


def test_what_is_new_is_worse_only_if_it_is_no_pass() -> None:
    before = baseline_of(record_of())
    assert not compare(before, record_of({**CLEAN, "warping-class_0": 0.1})).worse
    found = compare(before, record_of({**CLEAN, "warping-class_0": 3.0}))
    assert texts(found.worse) == ["class 0 (shirt), warping: anomaly index none -> 3.00, not there -> fail"]


def test_what_is_not_measured_any_more_is_worse_but_a_repair_without_a_trigger_is_not() -> None:
    before = baseline_of(
        record_of(None, finding_of("test_attack_success_rate_after[anp]", "attack_success_rate", 0.02))
    )
    left = {item: index for item, index in CLEAN.items() if item != "patch_scan-class_1"}
    found = compare(before, record_of(left))
    assert texts(found.worse) == [
        "class 1 (shoe), patch_scan: anomaly index: pass in the accepted model, not measured now"
    ]


def test_items_that_were_left_out_of_a_run_are_not_called_worse() -> None:
    left = {item: index for item, index in CLEAN.items() if item != "patch_scan-class_1"}
    record = record_of(left, not_run=["audit::test_anomaly_index[patch_scan-class_1]"])
    assert not compare(baseline_of(record_of()), record).worse


def test_sources_name_where_their_images_go() -> None:
    finding = index_of("source_scan-from_class_0", 5.0, target_class=2)
    found = compare(baseline_of(record_of()), record_of(None, finding))
    assert texts(found.worse)[0].startswith("from class 0 (shirt) to class 2 (bag), source_scan: anomaly index")
    assert found.worse[0].target_class == 2


def test_the_paper_index_of_a_finding_is_not_mixed_up_with_the_calibrated_one() -> None:
    first = index_of("neural_cleanse-class_0", 9.0, verdict="pass", details={"index": 0.5})
    second = index_of("neural_cleanse-class_0", 1.0, verdict="pass", details={"index": 0.6})
    changes = compare(baseline_of(record_of({}, first)), record_of({}, second)).unchanged
    assert [(change.before, change.after) for change in changes if "class_0" in change.item] == [(0.5, 0.6)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"subject": {"data_fingerprint": "e" * 64}},
            r"other clean images \(dddddddddddd there, eeeeeeeeeeee here\)",
        ),
        (
            {"subject": {"class_names": ["a", "b", "c"]}},
            r"class_names is \['shirt', .*\] there, \['a', 'b', 'c'\] here",
        ),
        ({"subject": {"num_classes": 4}}, "num_classes is 3 there, 4 here"),
        ({"settings": {"profile": "quick"}}, "profile is 'standard' there, 'quick' here"),
        ({"settings": {"seed": 1}}, "seed is 0 there, 1 here"),
        (
            {"settings": {"limits": {"anomaly_index": 3.0, "size_ratio": 0.33}}},
            "limits.anomaly_index is 2.0 there, 3.0 here",
        ),
        ({"settings": {"reference": "x/own.json"}}, "reference is '' there, 'own.json' here"),
        (
            {"detections": [{"detector": "patch_scan", "settings": "PatchScan(side=4)", "reference": "18 models"}]},
            r"detectors.patch_scan is 'PatchScan\(side=6\)' there",
        ),
        (
            {"detections": [{"detector": "patch_scan", "settings": "PatchScan(side=6)", "reference": "12 models; a"}]},
            "calibration.patch_scan is '18 models' there, '12 models' here",
        ),
    ],
)
def test_a_baseline_of_another_configuration_is_refused_with_the_difference_named(
    change: dict[str, Any], told: str
) -> None:
    with pytest.raises(BaselineError, match=told) as caught:
        compare(baseline_of(record_of()), record_of(**change), source="b.json")
    assert str(caught.value).startswith("b.json cannot be compared with this run: ")
    assert "\n" not in str(caught.value)


def test_every_difference_of_a_configuration_is_named_at_once() -> None:
    with pytest.raises(
        BaselineError, match=r"other clean images.*; num_classes is 3 .*; seed is 0 there, 1 here; run with"
    ):
        compare(
            baseline_of(record_of()),
            record_of(subject={"data_fingerprint": "e", "num_classes": 4}, settings={"seed": 1}),
        )


def test_a_configuration_can_be_refused_before_there_is_a_record() -> None:
    baseline, record = baseline_of(record_of()), record_of()
    baseline.refuse(configuration(record.subject, record.settings, {"patch_scan": "PatchScan(side=6)"}))
    with pytest.raises(BaselineError, match=r"detectors\.patch_scan"):
        baseline.refuse(configuration(record.subject, record.settings, {"patch_scan": "PatchScan(side=4)"}))
    with pytest.raises(BaselineError, match="steps is 240 there, 20 here"):
        baseline.refuse(configuration(record.subject, {**record.settings, "steps": 20}, {}))


def test_other_folders_names_of_files_and_devices_are_the_same_configuration() -> None:
    here = record_of(subject={"data": "other.npz", "model": "b.safetensors", "class_names": []})
    found = compare(
        baseline_of(record_of()), replace(here, environment={"backdoor_audit": "0.2.0", "device": "cuda:0"})
    )
    assert found.worse == ()
    assert list(found.notes) == [
        "the weights are those of the accepted model",
        "the accepted model was measured with version 0.1.0, this one with 0.2.0",
        "the accepted model was measured with device cpu, this one with cuda:0",
    ]


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


def test_a_long_list_of_regressions_is_cut_and_says_so() -> None:
    many = {f"patch_scan-class_{number}": 0.0 for number in range(3)} | {f"smooth-class_{n}": 0.0 for n in range(3)}
    many |= {f"warping-class_{n}": 0.0 for n in range(3)}
    found = compare(baseline_of(record_of(many)), record_of(dict.fromkeys(many, 5.0)))
    assert found.reason("anomaly_index").endswith("; and 3 more")


def test_findings_about_regressions_are_no_part_of_a_baseline() -> None:
    found = regressions(compare(baseline_of(record_of()), with_backdoor()))["anomaly_index"]
    assert isinstance(found, Finding)
    record = record_of(None, replace(found, audit="audit::test_regression[anomaly_index]"))
    assert not any("test_regression" in audit for audit in baseline_of(record).findings)


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


def test_a_signature_is_read_from_a_record_and_from_a_baseline_alike(tmp_path: Path) -> None:
    record_of().write(tmp_path / "audit.json")
    baseline_of(record_of()).write(tmp_path / "baseline.json")
    assert read_signature(tmp_path / "audit.json") == read_signature(tmp_path / "baseline.json")
    (tmp_path / "other.json").write_text('{"schema_version": 1}')
    with pytest.raises(Exception, match=r"other\.json") as caught:
        read_signature(tmp_path / "other.json")
    assert "\n" not in str(caught.value)


def network(*, backdoored: bool) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, toy.CLASSES))
    module.load_state_dict(toy.weights(backdoored=backdoored))
    return module


def test_real_runs_of_a_clean_and_a_backdoored_model_are_told_apart(tmp_path: Path) -> None:
    clean, backdoored = (
        audit(network(backdoored=flag), *toy.images(), steps=150, device="cpu", profile="quick", progress=False)
        for flag in (False, True)
    )
    file = tmp_path / "baseline.json"
    renewed(clean, None, TODAY)[0].write(file)
    baseline = Baseline.read(file)
    assert compare(baseline, clean).worse == ()
    assert list(compare(baseline, clean).notes) == ["the weights are those of the accepted model"]
    found = compare(baseline, backdoored)
    assert found.verdict is Verdict.FAIL
    assert {change.target_class for change in found.worse if change.regression == "anomaly_index"} == {toy.TARGET}
    assert f"class {toy.TARGET}, neural_cleanse: anomaly index" in found.reason("anomaly_index")

"""What counts as worse than the accepted model, and what is noise."""

from __future__ import annotations

import pytest

from backdoor_audit import Record, Verdict
from backdoor_audit.baseline import INDEX_NOISE, STEERED_NOISE, baseline_of, compare, index_noise
from backdoor_audit.baseline.difference import rate_noise
from backdoor_audit.properties import PROPERTIES
from tests.subjects.baselines import CLEAN, finding_of, index_of, record_of, texts, with_backdoor


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


def test_a_long_list_of_regressions_is_cut_and_says_so() -> None:
    many = {f"patch_scan-class_{number}": 0.0 for number in range(3)} | {f"smooth-class_{n}": 0.0 for n in range(3)}
    many |= {f"warping-class_{n}": 0.0 for n in range(3)}
    found = compare(baseline_of(record_of(many)), record_of(dict.fromkeys(many, 5.0)))
    assert found.reason("anomaly_index").endswith("; and 3 more")

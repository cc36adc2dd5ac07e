"""What the noise between models is measured from."""

from __future__ import annotations

from backdoor_audit.attacks import BadNets
from backdoor_audit.evidence import Verdict
from benchmarks.regression_noise import (
    Measured,
    factors,
    pairs_of_models,
    pairs_of_seeds,
    rise_of,
    rises,
    shrinking,
    steered_worse,
    worse,
)
from benchmarks.zoo.subject import Subject
from tests.subjects.detections import margin_row, size_row


def measured(
    *rows: tuple[float | None, Verdict, float | None], data: str = "fmnist", backdoored: bool = False
) -> Measured:
    """A subject whose classes have these indices, verdicts and sizes under one detector."""
    subject = Subject(data=data, architecture="small_cnn", tag="x", seed=1, attack=BadNets() if backdoored else None)
    scores = [
        margin_row(number, index=index) if size is None else size_row(number, index=index, size=size)
        for number, (index, _, size) in enumerate(rows)
    ]
    return Measured(subject, {("any", number): (score, rows[number][1]) for number, score in enumerate(scores)})


def test_rises_begin_at_zero_and_need_the_row_in_both() -> None:
    before = measured((-5.0, Verdict.PASS, None), (0.5, Verdict.PASS, None), (None, Verdict.PASS, None))
    after = measured((1.0, Verdict.PASS, None), (0.2, Verdict.PASS, None))
    assert sorted(round(rise, 6) for rise in rises((before, after))) == [-0.3, 1.0]
    assert rises((before, after), detector="other") == []


def test_only_indices_above_the_limit_have_a_factor() -> None:
    before = measured((3.0, Verdict.FAIL, None), (1.9, Verdict.PASS, None))
    after = measured((4.5, Verdict.FAIL, None), (9.0, Verdict.FAIL, None))
    assert factors((before, after)) == factors((after, before)) == [1.5]


def test_shrinking_is_the_size_before_over_the_size_after() -> None:
    before = measured((0.0, Verdict.PASS, 30.0), (0.0, Verdict.PASS, None))
    after = measured((0.0, Verdict.PASS, 10.0), (0.0, Verdict.PASS, 5.0))
    assert shrinking((before, after)) == [3.0]


def test_a_verdict_and_an_index_are_counted_apart() -> None:
    clean = measured((0.1, Verdict.PASS, None), (0.1, Verdict.PASS, None))
    assert worse((clean, measured((1.8, Verdict.PASS, None), (0.1, Verdict.PASS, None)))) == (False, False)
    assert worse((clean, measured((1.95, Verdict.PASS, None), (0.1, Verdict.PASS, None)))) == (False, True)
    assert worse((clean, measured((2.1, Verdict.FAIL, None), (0.1, Verdict.PASS, None)))) == (True, False)
    assert worse((measured((2.1, Verdict.FAIL, None)), clean)) == (False, False)


def test_models_are_compared_on_the_same_images_from_a_clean_one_on() -> None:
    row = (0.0, Verdict.PASS, None)
    first, second, other = measured(row), measured(row), measured(row, data="cifar10")
    bad = measured(row, backdoored=True)
    known = [first, second, other, bad, measured(backdoored=True)]
    assert pairs_of_models(known, backdoored=False) == [(first, second), (second, first)]
    assert pairs_of_models(known, backdoored=True) == [(first, bad), (second, bad)]


def test_seeds_are_compared_both_ways_where_both_were_searched() -> None:
    row = (0.0, Verdict.PASS, None)
    first, again, unsearched = measured(row), measured(row), measured()
    assert pairs_of_seeds([first, first], [again, unsearched]) == [(first, again), (again, first)]


def test_a_property_is_worse_by_its_verdict_or_beyond_its_noise() -> None:
    def found(value: float | None, verdict: str = "pass") -> dict[str, dict[str, object]]:
        names = ("no_small_patch_steers", "no_faint_blend_steers", "no_smooth_warp_steers")
        entries = {name: {"value": 0.1, "verdict": "pass"} for name in (*names, "harmless_changes_steer_nothing")}
        return {**entries, "no_smooth_warp_steers": {"value": value, "verdict": verdict}}

    assert rise_of("no_smooth_warp_steers", (found(0.1), found(0.25))) == [0.15]
    assert rise_of("no_smooth_warp_steers", (found(0.1), found(None))) == []
    assert not steered_worse((found(0.1), found(0.25)))
    assert steered_worse((found(0.1), found(0.45)))
    assert steered_worse((found(0.45), found(0.55, "fail")))
    assert not steered_worse((found(0.55, "fail"), found(0.45)))
    assert not steered_worse((found(0.45), found(0.1)))

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backdoor_audit.detectors import DETECTORS
from backdoor_audit.errors import DataFormatError, DegenerateScoresError
from backdoor_audit.search import anomaly as module
from backdoor_audit.search.anomaly import (
    CALIBRATED_LIMIT,
    DETECTOR_RATE,
    FALSE_ALARM_RATE,
    LEAST_DEVIATION,
    PROBABILITIES,
    SteeringNull,
    anomaly,
    deviations_below,
    fit_gumbel,
    median,
    null_quantile,
    shipped_null,
    simulate_null,
)
from tests.subjects import quick
from tests.subjects.messages import one_line

sizes_of_classes = st.lists(st.floats(0.5, 500), min_size=5, max_size=30)


def has_spread(values):
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values) > 1e-3


def test_index_of_the_smallest_of_ten_norms_worked_by_hand():
    # median (50 + 51) / 2 = 50.5; deviations 40.5 .5 1.5 2.5 4.5 9.5 3.5 .5 1.5 2.5, their median 2.5; 2.5 * 1.4826 = 3.7065
    norms = [10, 50, 52, 48, 55, 60, 47, 51, 49, 53]
    assert median(norms) == 50.5
    assert deviations_below(norms)[0] == pytest.approx(40.5 / 3.7065)
    assert anomaly(norms).paper_index[0] == pytest.approx(10.93, abs=0.005)
    assert anomaly(norms).median_size == 50.5


def test_a_lower_median_would_turn_this_verdict_round():
    # With the lower median, as torch.median takes it, the index of norm 20 would be 3.37: "backdoored".
    norms = [20, 23, 36, 39, 40, 41, 44, 54, 67, 68]
    assert max(anomaly(norms).paper_index) == pytest.approx(1.54, abs=0.005)


def test_index_of_a_class_five_deviations_below_the_median():
    # median 9, deviations 8 1 0 1 2, their median 1
    assert deviations_below([1.0, 8.0, 9.0, 10.0, 11.0]) == pytest.approx(
        [8 / 1.4826, 1 / 1.4826, 0, -1 / 1.4826, -2 / 1.4826]
    )


def test_the_log_index_counts_deviations_in_orders_of_magnitude():
    # base-2 logs 0 3 4 5 6: median 4, deviations 4 1 0 1 2, their median 1; the base cancels
    assert anomaly([1, 8, 16, 32, 64]).log_index == pytest.approx([4 / 1.4826, 1 / 1.4826, 0, -1 / 1.4826, -2 / 1.4826])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
@quick
def test_the_median_averages_the_two_middle_values(values):
    assert median(values) == pytest.approx(statistics.median(values), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [4.0, 1.0, 2.0, 3.0]])
def test_the_median_of_an_odd_and_an_even_number_of_values(values):
    assert median(values) == {3: 2.0, 4: 2.5}[len(values)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([5.0] * 8, "equal"),
        ([5.0] * 5 + [1.0, 2.0, 9.0], "equal"),
        ([5.0] * 5 + [1.0, 2.0, 3.0, 9.0], "equal"),
        ([5.0 * (1 + 1e-15 * k) for k in range(8)], "equal"),
        ([1.0, 2.0, 3.0, 4.0, math.nan], "not finite"),
        ([1.0, 2.0, 3.0, 4.0, math.inf], "not finite"),
        ([1.0, 2.0, 3.0, 4.0, 0.0], "zero"),
        ([1.0, 2.0, 3.0, 4.0, -5.0], "negative"),
        ([1.0, 2.0, 3.0, 4.0], "4 classes"),
        ([], "0 classes"),
    ],
)
def test_sizes_without_a_meaningful_spread_are_degenerate(sizes, message):
    with pytest.raises(DegenerateScoresError, match=message):
        anomaly(sizes)


@pytest.mark.parametrize("values", [[], [1.0, math.nan, 2.0], [1.0, 2.0, -math.inf], [7.0, 7.0, 7.0]])
def test_deviations_of_values_without_spread_are_degenerate(values):
    with pytest.raises(DegenerateScoresError):
        deviations_below(values)


def test_a_reference_that_is_zero_is_degenerate():
    with pytest.raises(DegenerateScoresError, match="zero"):
        anomaly([1.0, 2.0, 3.0, 4.0, 5.0], reference_sizes=[1.0, 1.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("classes", [5, 10, 43])
def test_an_index_of_two_means_one_detectors_share_of_false_alarms_at_every_number_of_classes(classes):
    """Fresh log-normal models, drawn by other code than the table; 4 binomial standard errors are allowed."""
    models = 2000
    sizes = np.exp(np.random.default_rng([7, classes]).normal(3.0, 0.4, (models, classes)))
    alarms = sum(max(anomaly(row.tolist()).index) > CALIBRATED_LIMIT for row in sizes) / models
    assert alarms == pytest.approx(DETECTOR_RATE, abs=4 * math.sqrt(DETECTOR_RATE / models))


def test_the_detectors_of_a_run_together_have_its_false_alarm_rate():
    assert len(DETECTORS) * DETECTOR_RATE == pytest.approx(FALSE_ALARM_RATE)


@pytest.mark.parametrize("rate", [FALSE_ALARM_RATE, DETECTOR_RATE])
@pytest.mark.parametrize(("classes", "interpolation"), [(5, 0), (10, 0), (43, 0), (22, 0.1), (35, 0.1), (60, 0.1)])
def test_on_and_between_the_rows_and_columns_of_the_table_the_false_alarm_rate_holds(classes, interpolation, rate):
    """4 binomial standard errors are allowed; interpolation between two rows may cost a tenth of the rate on top."""
    models = 20_000
    values = np.random.default_rng([8, classes]).standard_normal((models, classes))
    below = np.median(values, axis=1, keepdims=True) - values
    index = below.max(axis=1) / (1.4826 * np.median(np.abs(below), axis=1))
    alarms = float((index > null_quantile(classes, rate)).mean())
    assert alarms == pytest.approx(rate, abs=interpolation * rate + 4 * math.sqrt(rate / models))


def test_between_two_columns_the_quantile_lies_between_theirs():
    """In the logarithm of the probability: at the geometric mean of 0.005 and 0.002 in the middle."""
    tight, wide = (null_quantile(10, probability) for probability in (0.005, 0.002))
    assert null_quantile(10, math.sqrt(0.005 * 0.002)) == pytest.approx((tight + wide) / 2)
    assert tight < null_quantile(10, DETECTOR_RATE) < wide


@pytest.mark.parametrize("classes", [5, 8, 10, 19, 43])
def test_the_shipped_table_can_be_made_again(classes):
    """With 20,000 draws, compare probabilities: the share of draws above a shipped quantile is its own probability.

    A quantile estimated from n draws has a binomial error in probability, so the tolerance is 5 standard errors.
    """
    draws = 20_000
    again = simulate_null(classes, draws=draws, seed=99)
    for probability, remade in zip(PROBABILITIES, again, strict=True):
        error = 5 * math.sqrt(probability * (1 - probability) / draws)
        if probability + error >= PROBABILITIES[0] or probability - error <= PROBABILITIES[-1]:
            continue
        shipped = [null_quantile(classes, column) for column in PROBABILITIES]
        below, above = (
            float(np.exp(np.interp(math.log(edge), np.log(PROBABILITIES[::-1]), np.log(shipped[::-1]))))
            for edge in (probability + error, probability - error)
        )
        assert below <= remade <= above, f"probability {probability}"


def test_the_same_seed_makes_the_same_table():
    assert simulate_null(6, draws=500, seed=1) == simulate_null(6, draws=500, seed=1)
    assert simulate_null(6, draws=500, seed=1) != simulate_null(6, draws=500, seed=2)


def test_the_shipped_quantiles_rise_as_the_probability_falls():
    table = module._table()
    assert min(table) == module.MIN_CLASSES
    for classes, quantiles in table.items():
        assert list(quantiles) == sorted(quantiles), classes
        assert len(quantiles) == len(PROBABILITIES)


@pytest.mark.parametrize(("classes", "nearest"), [(1000, 1000), (5000, 1000)])
def test_past_the_end_of_the_table_its_last_row_holds(classes, nearest):
    assert null_quantile(classes, 0.05) == module._table()[nearest][PROBABILITIES.index(0.05)]


@given(st.integers(5, 60), st.floats(-5, 60), st.floats(0, 10))
@quick
def test_a_larger_deviation_never_has_a_larger_p_value(classes, deviation, more):
    smaller = module._p_value(deviation + more, classes)
    assert PROBABILITIES[-1] - 1e-12 <= smaller <= module._p_value(deviation, classes) <= 1


@pytest.mark.parametrize("classes", [5, 10, 43])
@pytest.mark.parametrize("rate", [FALSE_ALARM_RATE, DETECTOR_RATE])
def test_the_p_value_at_the_limit_is_the_false_alarm_rate(classes, rate):
    assert module._p_value(null_quantile(classes, rate), classes) == pytest.approx(rate)


def test_an_index_below_the_typical_largest_one_proves_nothing():
    assert module._p_value(0.0, 10) == 1.0


@given(sizes_of_classes.flatmap(lambda sizes: st.tuples(st.just(sizes), st.permutations(range(len(sizes))))))
@quick
def test_shuffled_classes_keep_their_indices(sizes_and_order):
    sizes, order = sizes_and_order
    assume(has_spread(sizes) and has_spread([math.log(size) for size in sizes]))
    plain, shuffled = anomaly(sizes), anomaly([sizes[position] for position in order])
    for name in ("paper_index", "log_index", "index", "p_value"):
        assert getattr(shuffled, name) == pytest.approx([getattr(plain, name)[position] for position in order])
    assert shuffled.cut_size == pytest.approx(plain.cut_size)


@given(sizes_of_classes, st.floats(0.01, 100))
@quick
def test_the_unit_of_the_sizes_does_not_matter(sizes, unit):
    assume(has_spread(sizes) and has_spread([math.log(size) for size in sizes]))
    plain, scaled = anomaly(sizes), anomaly([unit * size for size in sizes])
    assert scaled.log_index == pytest.approx(plain.log_index, rel=1e-6, abs=1e-6)
    assert scaled.median_size == pytest.approx(unit * plain.median_size)
    assert scaled.cut_size == pytest.approx(unit * plain.cut_size, rel=1e-6)


@given(sizes_of_classes)
@quick
def test_a_class_is_below_the_cut_exactly_when_its_index_is_above_the_limit(sizes):
    assume(has_spread(sizes) and has_spread([math.log(size) for size in sizes]))
    result = anomaly(sizes)
    for size, index in zip(sizes, result.index, strict=True):
        if abs(index - CALIBRATED_LIMIT) > 1e-6:
            assert (size < result.cut_size) == (index > CALIBRATED_LIMIT)


def test_reference_sizes_cancel_a_naturally_easy_class():
    natural = [4.0, 40.0, 44.0, 36.0, 50.0, 42.0, 38.0, 46.0, 41.0, 39.0]
    audited = [
        size * factor
        for size, factor in zip(natural, [1.0, 1.1, 0.9, 1.05, 0.95, 1.2, 0.85, 1, 1.02, 0.98], strict=True)
    ]
    assert anomaly(audited).index[0] > CALIBRATED_LIMIT
    assert anomaly(audited, reference_sizes=natural).index[0] == pytest.approx(0, abs=0.2)
    planted = [audited[0], audited[1] / 10, *audited[2:]]
    against_natural = anomaly(planted, reference_sizes=natural)
    assert [index > CALIBRATED_LIMIT for index in against_natural.index] == [False, True] + [False] * 8


NULL = SteeringNull({"additive": (1.3, 0.4), "warping": (0.7, 0.2)}, classes=10, models=30, source="hand-made")


WIDE = SteeringNull({"additive": (4.0, 0.4)}, classes=10, models=30, source="every cut is above the least deviation")


@pytest.mark.parametrize("detector", ["additive", "warping"])
@pytest.mark.parametrize("classes", [5, 10, 43])
def test_a_steering_index_is_two_exactly_where_the_p_value_is_one_detectors_share(detector, classes):
    cut = NULL.cut(detector, classes)
    assert NULL.p_value(detector, cut, classes) == pytest.approx(DETECTOR_RATE)
    assert NULL.index(detector, cut, classes) == CALIBRATED_LIMIT
    assert NULL.index(detector, cut / 2, classes) == pytest.approx(CALIBRATED_LIMIT / 2)
    assert NULL.index(detector, -cut, classes) == pytest.approx(-CALIBRATED_LIMIT)


def test_a_steering_p_value_worked_by_hand():
    # at the location a Gumbel variable is exceeded with 1 - 1/e; one scale above it with 1 - exp(-1/e)
    assert NULL.p_value("additive", 1.3, 10) == pytest.approx(1 - math.exp(-1))
    assert NULL.p_value("additive", 1.7, 10) == pytest.approx(1 - math.exp(-math.exp(-1)))
    # warping's own cut would be 1.9: 3.5 deviations count as that, and fewer as fewer
    assert NULL.bare_cut("warping", 10) < NULL.cut("warping", 10) == LEAST_DEVIATION
    shrunk = LEAST_DEVIATION / NULL.bare_cut("warping", 10)
    assert NULL.p_value("warping", 0.7 * shrunk, 10) == pytest.approx(1 - math.exp(-1))
    assert NULL.p_value("additive", -1e9, 10) == 1.0
    assert NULL.p_value("additive", 1e9, 10) == 0.0


@given(st.floats(-20, 40), st.floats(0.01, 5), st.integers(5, 500))
@quick
def test_a_steering_p_value_falls_with_the_deviation_and_the_index_rises(deviation, more, classes):
    first, second = (NULL.p_value("additive", value, classes) for value in (deviation, deviation + more))
    assert 0 <= second <= first <= 1
    assert (second < first) or first == second == 1.0 or second < 1e-12
    assert NULL.index("additive", deviation + more, classes) > NULL.index("additive", deviation, classes)


@given(st.floats(0.5, 15), st.integers(5, 400), st.integers(1, 400))
@quick
def test_with_more_classes_the_same_deviation_says_less(deviation, classes, more):
    few, many = (WIDE.p_value("additive", deviation, number) for number in (classes, classes + more))
    assert many >= few
    assert WIDE.index("additive", deviation, classes + more) < WIDE.index("additive", deviation, classes)


def test_the_largest_of_more_values_is_distributed_as_the_null_says():
    """The largest of 40 values is that of four times the largest of 10: the chance to stay below is its fourth power."""
    for deviation in (1.0, 1.5, 2.5):
        below = 1 - NULL.p_value("additive", deviation, 10)
        assert 1 - NULL.p_value("additive", deviation, 40) == pytest.approx(below**4)


@pytest.mark.parametrize(("location", "scale"), [(1.2, 0.4), (-3.0, 2.0), (100.0, 0.01)])
def test_the_fit_of_a_gumbel_distribution_finds_what_it_was_drawn_from(location, scale):
    """Of 20,000 draws: the standard errors are 1.05 and 0.78 scales over the root of their number; 4 are allowed."""
    found = fit_gumbel(np.random.default_rng(5).gumbel(location, scale, 20_000).tolist())
    assert found[0] == pytest.approx(location, abs=4 * 1.05 * scale / math.sqrt(20_000))
    assert found[1] == pytest.approx(scale, abs=4 * 0.78 * scale / math.sqrt(20_000))


def test_the_fit_of_a_gumbel_distribution_has_the_largest_likelihood():
    values = np.random.default_rng(6).gumbel(1.0, 0.5, 12)

    def likelihood(location, scale):
        away = (values - location) / scale
        return float((-math.log(scale) - away - np.exp(-away)).sum())

    location, scale = fit_gumbel(values.tolist())
    best = likelihood(location, scale)
    for step in (-0.01, 0.01):
        assert likelihood(location + step, scale) < best
        assert likelihood(location, scale + step) < best


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0] * 20, list(range(9))])
def test_too_few_values_or_equal_ones_cannot_be_fitted(values):
    with pytest.raises(DegenerateScoresError, match="at least 10 that differ"):
        fit_gumbel([float(value) for value in values])


def test_a_null_is_fitted_to_each_detector_by_itself():
    """The location is the fit's; the scale is at least the fit's, so wide that the cut is a tenth above the largest value."""
    draws = np.random.default_rng(7)
    largest = {"additive": draws.gumbel(1.0, 0.5, 40).tolist(), "stripes": [*draws.gumbel(2.0, 0.1, 40).tolist(), 3.5]}
    null = SteeringNull.fit(largest, classes=10, models=40, source="draws")
    assert (null.classes, null.models, null.source) == (10, 40, "draws")
    assert list(null.fits) == ["additive", "stripes"]
    for name, values in largest.items():
        location, scale = fit_gumbel(values)
        assert null.fits[name][0] == location
        assert null.fits[name][1] >= scale
        assert null.cut(name, 10) >= 1.1 * max(values) - 1e-9
    assert null.cut("stripes", 10) == pytest.approx(1.1 * 3.5)


def test_a_tail_that_is_heavy_enough_is_kept():
    """Even values: the cut of their fit lies far above the largest."""
    values = np.linspace(1, 2, 20).tolist()
    assert SteeringNull.fit({"additive": values}, classes=10, models=20, source="").fits["additive"] == fit_gumbel(
        values
    )


def test_a_saved_null_comes_back_equal(tmp_path):
    NULL.save(tmp_path / "null.json")
    assert SteeringNull.load(tmp_path / "null.json") == NULL


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"fits": {"additive": [1.0]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, 0.0]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, -0.5]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": {"additive": [NaN, 0.5]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, NaN]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": {"additive": [-9.0, 0.5]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, 0.5]}, "classes": 1, "models": 3, "source": ""}',
        '{"fits": {"additive": ["a", 0.5]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": [1.0, 0.5], "classes": 10, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, 0.5]}, "classes": 10, "source": ""}',
        '{"fits": {"additive": [true, 0.5]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, 1e308]}, "classes": 9000000000000000000, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, 0.5]}, "classes": 10.5, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, 0.5]}, "classes": 1e999, "models": 3, "source": ""}',
        '{"fits": {"additive": [1.0, 0.5]}, "classes": 10, "models": 3, "source": []}',
        '{"fits": {"\\u001b\\n::error::": [1.0, -0.5]}, "classes": 10, "models": 3, "source": ""}',
        '{"fits": ' + "[" * 100_000,
        None,
    ],
)
def test_a_file_that_is_no_null_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "null.json"
    if content is not None:
        path.write_text(content)
    with one_line(DataFormatError, begins=f"{path}: "):
        SteeringNull.load(path)


def test_a_null_of_many_classes_that_turns_negative_for_few_is_refused(tmp_path):
    """There a large deviation would get a negative index: a backdoor would pass."""
    null = SteeringNull({"additive": (-0.5, 0.5)}, classes=1000, models=30, source="")
    assert null.bare_cut("additive", 1000) > 0 > null.bare_cut("additive", 5)
    null.save(tmp_path / "null.json")
    with pytest.raises(DataFormatError):
        SteeringNull.load(tmp_path / "null.json")


def test_the_shipped_null_knows_every_detector_that_compares_with_twins():
    null = shipped_null()
    needed = [detector.name for detector in DETECTORS if detector.needs_twins]
    assert set(needed) <= set(null.fits)
    assert all(null.cut(name, classes) > 0 for name in needed for classes in (5, 10, 43, 1000))

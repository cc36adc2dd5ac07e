import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backdoor_audit import anomaly as module
from backdoor_audit.anomaly import (
    CALIBRATED_LIMIT,
    FALSE_ALARM_RATE,
    PROBABILITIES,
    anomaly,
    deviations_below,
    median,
    null_quantile,
    simulate_null,
)
from backdoor_audit.errors import DegenerateScoresError
from tests.subjects import quick

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
def test_an_index_of_two_means_five_percent_false_alarms_at_every_number_of_classes(classes):
    """Fresh log-normal models, drawn by other code than the table; 4 binomial standard errors are allowed."""
    models = 1000
    sizes = np.exp(np.random.default_rng([7, classes]).normal(3.0, 0.4, (models, classes)))
    alarms = sum(max(anomaly(row.tolist()).index) > CALIBRATED_LIMIT for row in sizes) / models
    assert alarms == pytest.approx(FALSE_ALARM_RATE, abs=4 * math.sqrt(FALSE_ALARM_RATE * 0.95 / models))


@pytest.mark.parametrize(
    ("classes", "interpolation"), [(5, 0), (10, 0), (43, 0), (22, 0.005), (35, 0.005), (60, 0.005)]
)
def test_on_and_between_the_rows_of_the_table_the_false_alarm_rate_holds(classes, interpolation):
    """4 binomial standard errors are allowed; interpolation between two rows may cost half a point on top."""
    models = 20_000
    values = np.random.default_rng([8, classes]).standard_normal((models, classes))
    below = np.median(values, axis=1, keepdims=True) - values
    index = below.max(axis=1) / (1.4826 * np.median(np.abs(below), axis=1))
    alarms = float((index > null_quantile(classes, FALSE_ALARM_RATE)).mean())
    assert alarms == pytest.approx(FALSE_ALARM_RATE, abs=interpolation + 4 * math.sqrt(0.05 * 0.95 / models))


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
def test_the_p_value_at_the_limit_is_the_false_alarm_rate(classes):
    assert module._p_value(null_quantile(classes, FALSE_ALARM_RATE), classes) == pytest.approx(FALSE_ALARM_RATE)


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

"""What the benchmark of filters adds up."""

import math

import pytest

from benchmarks import filters

ROWS = {
    "first": {"strip": (0.02, 0.5), "novelty": (0.04, 0.1)},
    "second": {"strip": (0.06, 0.1), "novelty": "no penultimate layer"},
    "other": {"strip": (0.5, 1.0), "novelty": (0.5, 1.0)},
}


def test_means_are_over_the_subjects_that_a_filter_fits():
    assert filters.means(ROWS, ["first", "second"], "strip") == (2, pytest.approx(0.04), pytest.approx(0.3))
    assert filters.means(ROWS, ["first", "second"], "novelty") == (1, 0.04, 0.1)


def test_a_filter_that_fits_none_has_no_mean():
    fitted, rejected, passed = filters.means(ROWS, ["second"], "novelty")
    assert fitted == 0
    assert math.isnan(rejected)
    assert math.isnan(passed)


def test_what_was_not_fitted_is_a_dash():
    assert filters._cell("no penultimate layer").strip() == "-"
    assert filters._cell((0.05, 0.123)).split() == ["5.0%", "/", "12.3%"]

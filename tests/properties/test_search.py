"""Hypothesis as a search: what is drawn, climbed, stopped, and left alone."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backdoor_audit import progress
from backdoor_audit.errors import BudgetSpentError
from backdoor_audit.properties.exploring import MOST_AGAIN, choice, explore, explore_on, number, scaled, still_climbing
from tests.subjects import quick


def looked(strategy, score, *, examples=60, seed=0):
    seen = []

    def look(example):
        seen.append(example)
        return score(example)

    return explore(strategy, look, examples=examples, random_seed=seed), seen


def test_a_search_looks_at_every_example_once_and_counts_them():
    count, seen = looked(number(0, 9), lambda _: ({}, False))
    assert count == len(seen) == len(set(seen)) <= 10
    assert len(seen) >= 8


def test_a_search_stops_at_the_first_example_that_refutes():
    count, seen = looked(number(0, 1000), lambda example: ({}, example > 300))
    assert seen[-1] > 300
    assert max(seen[:-1], default=0) <= 300
    assert count == len(seen) < 30


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_are_climbed_to_a_place_that_chance_misses(seed):
    places = st.tuples(number(0, 255), number(0, 255))

    def far(place):
        return abs(place[0] - 200) + abs(place[1] - 31)

    _, climbed = looked(places, lambda place: ({"near": -float(far(place))}, False), examples=300, seed=seed)
    _, drawn = looked(places, lambda _: ({}, False), examples=300, seed=seed)
    assert min(map(far, climbed)) == 0
    assert min(map(far, drawn)) > 5


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_do_not_end_a_search(odd):
    assert looked(number(0, 99), lambda example: ({"odd": odd if example % 2 else 1.0}, False))[0] > 30


def climbing(*nearest, examples=None):
    """What is said of a search whose examples sent these shares of images to class 3, whose limit is 0.7."""
    looks = [{1: 0.0, 3: share} for share in nearest]
    return still_climbing(looks, {1: 0.5, 3: 0.7}.__getitem__, examples=examples or len(looks))


@pytest.mark.parametrize(
    ("nearest", "told"),
    [
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], ""),
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.49], ""),  # 0.19 nearer: as much again is 0.68
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.51, 0.3], "the last 2 of 8 examples came so much nearer"),
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.51, 0.3, 0.3], ""),  # not among the last quarter
        ([0.8, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], ""),  # above the limit on search images, but not on others
        ([0.69], "the last 1 of 1 examples"),
        ([0.1], "the last 1 of 1 examples"),  # nothing to compare it with
    ],
)
def test_a_search_whose_last_examples_came_much_nearer_has_not_converged(nearest, told):
    said = climbing(*nearest)
    assert said.startswith(told)
    assert bool(said) == bool(told)


def test_a_search_that_looked_at_too_few_examples_has_not_converged():
    assert climbing(*[0.1] * 10, examples=20) == ""
    assert climbing(*[0.1] * 9, examples=20) == "it looked at 9 different examples of 20"
    assert still_climbing([], lambda _: 0.5, examples=20) == "it looked at 0 different examples of 20"


def test_the_nearest_is_that_of_any_class():
    looks = [*[{1: 0.1, 3: 0.6}] * 6, {1: 0.1, 3: 0.6}, {1: 0.46, 3: 0.6}]
    assert still_climbing(looks, {1: 0.5, 3: 0.7}.__getitem__, examples=8)


def test_an_audit_error_ends_the_search_and_is_raised():
    calls = []

    def look(example):
        calls.append(example)
        if len(calls) == 5:
            raise BudgetSpentError("spent")
        return {}, False

    with pytest.raises(BudgetSpentError, match="spent"):
        explore(number(0, 99), look, examples=60, random_seed=0)
    assert len(calls) == 5


def test_the_seed_alone_decides_whatever_the_profile_of_the_project():
    draws = st.builds(lambda *values: values, number(0, 99), choice(("a", "b", "c")), number(-50, 50))

    def drawn(seed):
        return looked(draws, lambda example: ({"first": float(example[0])}, False), seed=seed)[1]

    expected = drawn(3)
    assert drawn(4) != expected
    settings.register_profile("of a project", max_examples=3, derandomize=True, phases=())
    settings.register_profile("before", settings.default)
    settings.load_profile("of a project")
    try:
        assert drawn(3) == expected
    finally:
        settings.load_profile("before")


DRAW = """
from backdoor_audit.properties.exploring import explore, number
explore(number(0, 9999), lambda example: (print(example), ({"it": float(example)}, False))[1], examples=200, random_seed=0)
"""


def test_modules_that_happen_to_be_loaded_do_not_matter(tmp_path, capsys):
    """Hypothesis reads constants out of a project's modules, and would draw them as integers; this process has others."""
    (tmp_path / "constants.py").write_text("\n".join(f"A{value} = {value}" for value in range(7000, 7400)))
    (tmp_path / "draw.py").write_text(f"import constants\n{DRAW}")
    elsewhere = subprocess.run(
        [sys.executable, "draw.py"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert len(elsewhere) > 150
    exec(DRAW, {})
    assert capsys.readouterr().out.split() == elsewhere


@pytest.mark.parametrize("refutes", [False, True])
def test_a_search_leaves_no_files(tmp_path, monkeypatch, refutes):
    monkeypatch.chdir(tmp_path)
    draws = st.tuples(number(0, 99), choice((1, 2, 3)))
    looked(draws, lambda example: ({"first": float(example[0])}, refutes and example[0] > 50))
    assert os.listdir(Path.cwd()) == []


@given(st.integers(-20, 20), st.integers(1, 70))
@quick
def test_numbers_cover_their_range_about_evenly(low, count):
    width = (count - 1).bit_length() + 1
    seen = Counter(scaled(bits, low=low, count=count) for bits in all_bits(width))
    assert set(seen) == set(range(low, low + count))
    assert max(seen.values()) <= 2 * min(seen.values())


@pytest.mark.parametrize("count", [8, 11, 26])
def test_flipping_one_bit_reaches_the_neighbours_of_every_number(count):
    width = (count - 1).bit_length() + 1
    reached = {value: set() for value in range(count)}
    for bits in all_bits(width):
        value = scaled(bits, low=0, count=count)
        for at in range(width):
            flipped = (*bits[:at], not bits[at], *bits[at + 1 :])
            reached[value].add(scaled(flipped, low=0, count=count))
    for value in range(1, count):
        assert value - 1 in reached[value]
        assert value in reached[value - 1]


def test_one_option_needs_no_bits():
    assert looked(choice(("only",)), lambda _: ({}, False))[1] == ["only"]


def all_bits(width):
    return [tuple(bool(value >> at & 1) for at in range(width)) for value in range(2**width)]


@pytest.mark.parametrize(("rounds", "asked"), [(0, 10), (1, 20), (9, 10 * (1 + MOST_AGAIN))])
def test_a_search_that_has_not_ended_goes_on_by_other_random_numbers(rounds, asked):
    seen, told = [], []

    def look(example):
        seen.append(example)
        return {"value": float(example)}, False

    def unfinished(count):
        told.append(count)
        return len(told) <= rounds

    meter = progress.Meter()
    with progress.watched_by(meter), progress.piece("it"):
        found = explore_on(number(0, 10**6), look, examples=10, random_seed=5, unfinished=unfinished)
    assert found == (len(seen), asked)
    assert meter.again.get("it", 0) == asked // 10 - 1
    assert told == [10 * (entry + 1) for entry in range(min(rounds + 1, MOST_AGAIN))]
    once = []
    explore(number(0, 10**6), lambda example: (once.append(example), ({}, False))[1], examples=10, random_seed=5)
    assert len(set(seen) - set(once)) >= 4 * min(rounds, MOST_AGAIN)

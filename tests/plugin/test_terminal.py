"""What a run says in the terminal: the cost before, how far it is meanwhile, the verdict at the end."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from backdoor_audit.plugin import pace
from backdoor_audit.run.effort import CANARIES, Piece, Plan
from tests.subjects.toy_runs import Run

PIECES = (
    Piece(name="a", passes=100, seconds=10),
    Piece(name="b", passes=300, seconds=30),
    Piece(name="kept", passes=900, seconds=90, kept=True),
    Piece(name="the repair by c", passes=100, seconds=20, on_demand=True),
)
PLAN = Plan(PIECES, 0.1)


def test_a_judged_item_has_no_block_and_no_short_line_and_the_verdict_comes_last(run: Run) -> None:
    result = run("backdoored")
    text = result.stdout.str()
    assert "FAILURES" not in text
    assert "short test summary" not in text
    assert result.parseoutcomes()["failed"] > 0  # pytest's own line counts them all the same
    assert result.outlines[-1] == "FAIL: hidden trigger found for class 3 [exit code 1]"
    assert " failed" in result.outlines[-2]


@pytest.mark.parametrize("option", ["-v", "--tb=short", "-rf"])
def test_whoever_asks_for_pytests_own_words_gets_them(run: Run, option: str) -> None:
    result = run("backdoored", "audit::test_anomaly_index[neural_cleanse-class_3]", option)
    assert "FAILED audit::test_anomaly_index[neural_cleanse-class_3]" in result.stdout.str()
    assert result.outlines[-1].startswith("FAIL: hidden trigger found for class 3")


def test_a_broken_test_of_the_projects_own_keeps_its_traceback(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_own="def test_own():\n    assert 1 == 2, 'mine'")
    text = run("backdoored", "test_own.py", "audit").stdout.str()
    assert "FAILED test_own.py::test_own" in text
    assert "AssertionError: mine" in text
    assert "FAILED audit::" not in text


@pytest.mark.parametrize("options", [("-q",), ("-qq", "-p", "no:html"), ("--no-summary",)])
def test_the_verdict_is_the_last_line_however_quiet_pytest_is(run: Run, options: tuple[str, ...]) -> None:
    result = run("clean", *options)
    assert result.outlines[-1] == "PASS: no hidden trigger found by the tests that were run [exit code 0]"


def test_the_last_line_says_what_the_process_ends_with_whatever_a_plugin_wants(
    project: pytest.Pytester, run: Run
) -> None:
    project.makeconftest("def pytest_sessionfinish(session):\n    session.exitstatus = 0\n")
    result = run("backdoored")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.lines[-1] == "FAIL: hidden trigger found for class 3 [exit code 1]"


@pytest.mark.usefixtures("unsearched")
def test_the_cost_is_told_before_the_first_search(run: Run) -> None:
    (told,) = [line for line in run("clean").outlines if line.startswith("backdoor_audit: ")]
    assert told.startswith("backdoor_audit: 37 items, 4 searches, ")
    assert " image passes at " in told


@pytest.mark.usefixtures("unsearched")
def test_without_a_terminal_a_line_now_and_then_says_how_far_the_run_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "EVERY", 0.0)
    told = [line for line in run("clean").outlines if "% of the run is done, about" in line]
    assert any("the search of neural_cleanse; " in line for line in told)


def test_what_a_list_of_items_costs_is_not_asked(run: Run) -> None:
    assert "image passes" not in run("clean", "--collect-only").stdout.str()


@pytest.mark.usefixtures("unsearched")
def test_with_workers_the_cost_is_told_once_the_verdict_is_last_and_junit_cases_are_grouped(
    project: pytest.Pytester, run: Run
) -> None:
    result = run("clean", "--junitxml=junit.xml", "-n", "2", process=True)
    assert sum(" image passes at " in line for line in result.errlines) == 1
    assert result.outlines[-1].startswith("PASS")
    cases = ElementTree.parse(project.path / "junit.xml").getroot().findall(".//testcase")
    named = {(case.get("classname"), case.get("name")) for case in cases}
    assert ("backdoor_audit.neural_cleanse", "class 3") in named
    assert ("backdoor_audit.precondition", "accuracy") in named
    assert len(named) == len(cases)
    assert list(project.path.glob(".pytest_cache/d/backdoor_audit/pace-*")) == []


def test_the_rest_is_reckoned_from_the_plan_and_from_how_right_it_was() -> None:
    assert pace.left(PLAN, {}, set(), {}, 0.0) == (0.0, pytest.approx(40))
    share, seconds = pace.left(PLAN, {"b": 150.0}, {"a"}, {}, 25.0)  # as fast as planned: 10 s of a, half of b
    assert (share, seconds) == (pytest.approx(25 / 40), pytest.approx(15))
    slow = pace.left(PLAN, {"b": 150.0}, {"a"}, {}, 50.0)[1]
    assert 25 < slow < 30  # twice as slow
    assert pace.left(PLAN, {}, {"a", "b"}, {}, 40.0) == (1.0, 0.0)


def test_a_search_that_goes_on_as_it_has_not_converged_makes_the_rest_longer() -> None:
    share, seconds = pace.left(PLAN, {"b": 300.0}, {"a"}, {"b": 1}, 40.0)  # all of b that was planned, and once more
    assert share == pytest.approx(40 / 70)
    assert seconds == pytest.approx(30)
    assert pace.left(PLAN, {}, {"a", "b"}, {"b": 2}, 100.0) == (1.0, 0.0)


def test_repairs_count_once_the_first_of_them_begins() -> None:
    assert pace.left(PLAN, {"the repair by c": 50.0}, {"a", "b"}, {}, 50.0)[1] == pytest.approx(10, rel=0.05)


def test_canaries_are_told_by_their_number_of_passes() -> None:
    plan = Plan((Piece(name=CANARIES, passes=100, seconds=10),), 0.1)
    passes = {"the search for a 3 px patch for class 1": 30.0, "the search for a 4 px patch for class 1": 20.0}
    assert pace.left(plan, passes, set(passes), {}, 5.0)[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (400, "7 min"), (9000, "2.5 h"), (9e5, "10 days")]
)
def test_a_span_is_told_as_exactly_as_a_guess_may_be(seconds: float, words: str) -> None:
    assert pace.span(seconds) == words

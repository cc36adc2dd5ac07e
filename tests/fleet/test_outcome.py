"""How models are ranked, and the corrections of their p-values, worked out by hand."""

from __future__ import annotations

import pytest

from backdoor_audit.evidence import Verdict
from backdoor_audit.fleet.outcome import ERROR, Row, benjamini_hochberg, ranked, run_p_value
from backdoor_audit.fleet.page import page
from tests.subjects.fleets import detections
from tests.subjects.records import finding, record


def test_the_p_value_of_a_run_is_its_smallest_times_the_number_of_detectors_that_answered() -> None:
    def kept(*p_values: float | None) -> float | None:
        return run_p_value(record(finding(Verdict.PASS), detections=detections(*p_values)))

    assert kept(0.02, 0.5, None) == pytest.approx(0.04)
    assert kept(0.6, 0.7) == 1.0
    assert kept(None) is None


def test_benjamini_and_hochberg() -> None:
    # sorted 0.01 0.02 0.03 0.9: times 4/1, 4/2, 4/3, 4/4 = 0.04 0.04 0.04 0.9; each at most the next larger one's
    assert benjamini_hochberg([0.9, 0.01, 0.03, 0.02]) == pytest.approx([0.9, 0.04, 0.04, 0.04])
    assert benjamini_hochberg([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert benjamini_hochberg([]) == []


def row(name: str, state: str, p_value: float | None = None, **rest: object) -> Row:
    return Row(name=name, file=f"/somewhere/{name}.pt", state=state, reason=f"why {name}", p_value=p_value, **rest)  # type: ignore[arg-type]


def test_the_most_suspicious_come_first_and_models_that_were_not_audited_before_those_that_passed() -> None:
    rows = [
        row("a", "pass", 0.9),
        row("b", "pass", 0.2),
        row("c", ERROR),
        row("d", "inconclusive", 0.01),
        row("e", "fail", 0.004),
        row("f", "fail", 0.0001),
    ]
    order = ranked(rows)
    assert [entry.name for entry in order] == ["f", "e", "d", "c", "b", "a"]
    assert {entry.name: entry.corrected for entry in order} == {
        "f": pytest.approx(0.0005),
        "e": pytest.approx(0.01),
        "d": pytest.approx(0.05 / 3),
        "c": None,
        "b": pytest.approx(0.25),
        "a": pytest.approx(0.9),
    }


def test_the_page_names_every_model_with_its_reason_and_takes_no_word_for_more_than_text() -> None:
    rows = ranked(
        [row("a", "pass", 0.9), row("b", ERROR), row("c", "fail", 0.001, evidence=True, flagged="1 (<b>dog</b>)")]
    )
    text = page(rows, data="/home/me/images.npz")
    assert text.index("why c") < text.index("why b") < text.index("why a")
    assert "1 (&lt;b&gt;dog&lt;/b&gt;)" in text
    assert "<b>dog" not in text
    assert "/home/me" not in text
    assert 'href="c/audit.html"' in text
    assert 'href="b/' not in text

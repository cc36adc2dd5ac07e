"""The closing section in the terminal."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from backdoor_audit.evidence import Finding, Record, Verdict
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.report.html import page
from backdoor_audit.report.markdown import markdown
from backdoor_audit.report.terminal import WIDEST, headline, last_line, summary_lines
from tests.subjects.whole_records import whole_record

BASELINE = {"file": "v1.json", "verdict": "fail"}


def finding(verdict: Verdict, **rest: Any) -> Finding:
    given = {"audit": "audit::x", "statistic": "anomaly_index", "value": 2.5, "limit": 2.0, "reason": "why", **rest}
    return Finding(verdict=verdict, **given)


def record(*findings: Finding, **rest: Any) -> Record:
    given: dict[str, Any] = {
        "subject": {"class_names": ["cat", "dog"]},
        "settings": {},
        "environment": {},
        "detections": [],
        "repairs": [],
        "skipped": {},
        "errors": {},
        "not_run": [],
        "not_tested": ["warped triggers"],
        "seconds": 1.0,
    }
    return Record(findings=findings, **{**given, **rest})


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        (record(finding(Verdict.PASS)), "PASS: no hidden trigger found"),
        (
            record(finding(Verdict.PASS), finding(Verdict.INCONCLUSIVE, value=None)),
            "INCONCLUSIVE: this model could not be judged",
        ),
        (
            record(finding(Verdict.PASS), finding(Verdict.INCONCLUSIVE)),
            "INCONCLUSIVE: suspicious trigger that sends every class to another; not a clean result",
        ),
        (record(), "INCONCLUSIVE"),
        (record(finding(Verdict.PASS), not_run=["audit::y"]), "INCONCLUSIVE: 1 items were not run"),
        (record(finding(Verdict.PASS), errors={"audit::y": "broken"}), "INCONCLUSIVE"),
        (record(finding(Verdict.FAIL, target_class=1)), "FAIL: hidden trigger found for class 1 (dog)"),
        (
            record(finding(Verdict.FAIL, target_class=0), finding(Verdict.FAIL, target_class=5)),
            "FAIL: hidden trigger found for classes 0 (cat), 5",
        ),
        (
            record(
                finding(Verdict.INCONCLUSIVE, target_class=1), finding(Verdict.INCONCLUSIVE, target_class=0, value=None)
            ),
            "INCONCLUSIVE: suspicious trigger for class 1 (dog); not a clean result",
        ),
        (record(finding(Verdict.FAIL, statistic="clean_accuracy_drop", target_class=1)), "FAIL: a limit was exceeded"),
        (
            record(finding(Verdict.FAIL, statistic="regression", target_class=1), baseline=BASELINE),
            "FAIL: inside the limits, but worse than v1.json: class 1 (dog)",
        ),
        (
            record(finding(Verdict.FAIL, statistic="regression"), baseline=BASELINE),
            "FAIL: inside the limits, but worse than v1.json",
        ),
        (
            record(
                finding(Verdict.FAIL, statistic="regression"), finding(Verdict.FAIL, statistic="clean_accuracy_drop")
            ),
            "FAIL: a limit was exceeded",
        ),
        (record(finding(Verdict.FAIL)), "FAIL: hidden trigger found that sends every class to another"),
        (
            record(finding(Verdict.FAIL), finding(Verdict.FAIL, target_class=1)),
            "FAIL: hidden trigger found for class 1 (dog)",
        ),
    ],
)
def test_the_headline_says_the_verdict_in_words(subject: Record, told: str) -> None:
    assert headline(subject).startswith(told)


def lines(subject: Record, **rest: Any) -> list[str]:
    return [line for line, _ in summary_lines(subject, **rest)]


def place(told: list[str], start: str) -> int:
    return next(number for number, line in enumerate(told) if line.startswith(start))


def test_the_section_goes_from_the_verdict_to_the_page() -> None:
    settings = {"model": "m.safetensors", "data": "images.npz"}
    repair = finding(
        Verdict.PASS,
        audit="audit::test_attack_success_rate_after[nc_pruning]",
        statistic="attack_success_rate",
        value=0.0,
        limit=0.1,
    )
    told = lines(
        record(finding(Verdict.FAIL, target_class=1), repair, settings=settings), page="folder/audit.html", told=["odd"]
    )
    starts = ["FAIL", "Trigger", "Evidence", "Remedies", "Not tested", "Next: backdoor-audit repair", "odd", "Page"]
    places = [place(told, start) for start in starts]
    assert places == sorted(places)
    assert told[0].startswith("FAIL: hidden trigger found for class 1 (dog)")
    assert told[-1] == "Page: folder/audit.html"


@pytest.mark.parametrize("width", [10, 79, 500])
def test_no_reason_is_cut_and_no_line_but_a_command_is_too_wide(width: int) -> None:
    reason = "class 1 (dog): " + " ".join(f"word{number}" for number in range(80))
    told = lines(record(finding(Verdict.FAIL, target_class=1, reason=f"first; {reason}")), width=width)
    assert "word79" in " ".join(told)
    assert all(len(line) <= max(60, min(width, WIDEST)) for line in told)


def test_items_with_one_reason_take_one_line() -> None:
    subject = record(*(finding(Verdict.INCONCLUSIVE, audit=f"audit::test_y[{n}]", value=None) for n in range(50)))
    told = [line for line in lines(subject) if "why" in line]
    assert told == ["    50 items: why"]


def test_a_model_with_very_many_suspicious_classes_names_the_rest() -> None:
    told = lines(record(*(finding(Verdict.FAIL, target_class=target) for target in range(40))))
    assert sum(line.startswith("  class ") for line in told) == 12
    assert "class 39" in " ".join(told)


def test_skips_are_counted_by_reason_and_what_was_not_tested_is_told() -> None:
    told = lines(record(finding(Verdict.PASS), skipped={"a": "no trigger", "b": "no trigger"}))
    assert told[place(told, "Not tested") :] == ["Not tested:", "  2 items: no trigger", "  warped triggers"]


def test_the_last_line_is_the_verdict_with_the_exit_code() -> None:
    assert last_line(record(finding(Verdict.PASS)), 0)[0] == (
        "PASS: no hidden trigger found by the tests that were run [exit code 0]"
    )


def test_limits_that_somebody_has_changed_stand_beside_the_shipped_ones() -> None:
    limits = {**asdict(shipped_limits()), "anomaly_index": 1000.0, "flip_drop": 0.1}
    told = "limits of your own: anomaly_index 1000 (shipped 2)"
    changed = record(finding(Verdict.PASS), settings={"limits": limits})
    assert any(line.strip() == told for line, _ in summary_lines(changed))
    assert f"L{told[1:]}".replace("_", r"\_") in markdown(changed)
    usual = record(finding(Verdict.PASS), settings={"limits": asdict(shipped_limits())})
    assert "of your own" not in "".join(line for line, _ in summary_lines(usual)) + markdown(usual)


def test_what_the_classes_were_compared_with_is_told() -> None:
    nothing, alone = "", "no twins (too few images): the classes stand beside each other alone"
    plain = whole_record(5, findings=[finding(Verdict.PASS)])
    assert "compared with" not in "".join(line for line, _ in summary_lines(plain))
    for told in (nothing, alone):
        reference = f"61 clean models; {told}" if told else ""
        shown = replace(plain, detections=[{**entry, "reference": reference} for entry in plain.detections])
        text = " ".join(line.strip() for line, _ in summary_lines(shown))
        assert (f"compared with: {alone}" in text) == bool(told)
        assert (alone in page({"audit.json": shown})) == bool(told)

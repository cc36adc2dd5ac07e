"""The closing section in the terminal."""

from __future__ import annotations

from typing import Any

import pytest

from backdoor_audit.evidence import Finding, Record, Verdict
from backdoor_audit.report.terminal import headline, summary_lines

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


def test_every_finding_that_is_no_pass_has_its_line_with_value_and_limit() -> None:
    lines = [
        line for line, _ in summary_lines(record(finding(Verdict.FAIL, reason="too small"), finding(Verdict.PASS)))
    ]
    assert "  fail: too small [anomaly_index 2.5, limit 2]" in lines
    assert sum("audit::x" in line for line in lines) == 1


def test_skips_are_counted_by_reason_and_what_was_not_tested_is_told() -> None:
    lines = [
        line for line, _ in summary_lines(record(finding(Verdict.PASS), skipped={"a": "no trigger", "b": "no trigger"}))
    ]
    assert "  skipped: 2 items: no trigger" in lines
    assert "  not tested: warped triggers" in lines

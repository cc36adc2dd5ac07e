"""What a record says of the whole run, beside its findings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.record import build_record
from backdoor_audit.questions.suite import Suite, shipped
from backdoor_audit.rates import measured_rates


def rates(suite: Suite, **changed: Any) -> list[str]:
    settings = {**asdict(AuditOptions()), **changed}
    empty: dict[str, Any] = {"findings": {}, "skipped": {}, "errors": {}, "expected": (), "seconds": 1.0}
    return list(build_record({}, settings, questions=suite.to_json(), **empty).rates)


def test_the_shipped_questions_by_the_shipped_settings_are_right_as_often_as_measured() -> None:
    assert rates(shipped()) == measured_rates() != []
    assert rates(shipped(), seed=5) == measured_rates()


@pytest.mark.parametrize(
    "changed",
    [{"profile": "quick"}, {"index": "paper"}, {"steps": 30}, {"restarts": 2}, {"reference": "ours.json"}],
    ids=str,
)
def test_how_often_other_settings_are_right_was_not_measured(changed: dict[str, Any]) -> None:
    assert rates(shipped(), **changed) == []


def test_how_often_other_limits_and_fewer_questions_are_right_was_not_measured() -> None:
    assert rates(shipped().with_limits({"anomaly_index": 1000.0})) == []
    others = tuple(entry for entry in shipped().entries if entry.question.name != "anomaly_index")
    assert rates(Suite(shipped().folder, others)) == []
    assert rates(shipped().with_limits({"clean_accuracy_drop": 0.1})) == measured_rates()  # of repairs

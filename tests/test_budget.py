"""A run may be bounded in time: loops stop between two steps, and what was not covered is inconclusive."""

import time

import pytest
import torch

from backdoor_audit import budget
from backdoor_audit.errors import BudgetSpentError, OptionError
from backdoor_audit.evidence import Verdict
from backdoor_audit.gate import audit
from backdoor_audit.option_sources import build_options
from tests.subjects import toy


def parsed(text, tmp_path):
    return build_options({"budget": text}, {}, {}, tmp_path).budget


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45)])
def test_a_time_is_read_in_seconds_minutes_or_hours(text, seconds, tmp_path):
    assert parsed(text, tmp_path) == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "-5m", "nan", "inf", "10 minutes", "1d"])
def test_what_is_no_time_is_refused_in_one_line(text, tmp_path):
    with pytest.raises(OptionError, match="--audit-budget") as raised:
        parsed(text, tmp_path)
    assert "\n" not in str(raised.value)


def test_without_a_deadline_nothing_is_bounded():
    budget.check()
    with budget.until(None):
        budget.check()


def test_past_the_deadline_work_ends_and_only_inside_the_block():
    with budget.until(time.time() - 1), pytest.raises(BudgetSpentError, match="raise --audit-budget"):
        budget.check()
    budget.check()


def test_a_block_inside_another_has_its_own_deadline():
    with budget.until(time.time() - 1):
        with budget.until(time.time() + 60):
            budget.check()
        with pytest.raises(BudgetSpentError):
            budget.check()


def test_what_a_spent_budget_left_out_is_inconclusive_and_never_kept(tmp_path):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, toy.CLASSES))
    module.load_state_dict(toy.weights(backdoored=False))
    common = {"store": tmp_path, "profile": "quick", "steps": 150, "device": "cpu", "progress": False}
    short = audit(module, *toy.images(), budget=1e-6, **common)
    searched = [finding for finding in short.findings if finding.statistic == "anomaly_index"]
    assert len(searched) == toy.CLASSES
    assert all(finding.verdict is Verdict.INCONCLUSIVE and "time budget" in finding.reason for finding in searched)
    assert short.verdict is Verdict.INCONCLUSIVE
    assert short.settings["budget"] == 1e-6
    assert audit(module, *toy.images(), **common).verdict is Verdict.PASS

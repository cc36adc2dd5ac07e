"""Acceptances: what they must say, and which findings they are about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backdoor_audit.baseline import Baseline, baseline_of
from backdoor_audit.errors import BaselineError
from tests.subjects.baselines import accepted, record_of

GOOD = {"finding": "test_x", "reason": "why", "owner": "Ada", "expires": "2027-01-31"}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({**GOOD, "expires": "31.01.2027"}, "acceptance 1: expires is '31.01.2027', no day"),
        ({**GOOD, "expires": "2027-02-30"}, "no day"),
        ({**GOOD, "owner": " "}, "acceptance 1: owner must be filled in"),
        ({**GOOD, "reason": "...", "owner": ""}, "owner and reason must be filled in"),
        ({**GOOD, "finding": "*"}, "finding must be filled in"),
        ({**GOOD, "class": 7}, "acceptance 1: 'class'"),
        ({key: value for key, value in GOOD.items() if key != "owner"}, "no owner"),
        ({**GOOD, "reason": 3}, "reason must be filled in"),
        ("test_x", "'test_x' is no object"),
    ],
)
def test_an_acceptance_needs_a_finding_a_reason_an_owner_and_a_day(tmp_path: Path, entry: object, told: str) -> None:
    stored = {**baseline_of(record_of()).to_json(), "acceptances": [entry]}
    (tmp_path / "b.json").write_text(json.dumps(stored))
    with pytest.raises(BaselineError, match=told) as caught:
        Baseline.read(tmp_path / "b.json")
    assert '"expires": "YYYY-MM-DD"' in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("audit::test_anomaly_index[patch_scan-class_7]", True),
        ("test_anomaly_index[patch_scan-class_7]", True),
        ("test_anomaly_index[*-class_7]", True),
        ("*class_7]", True),
        ("test_anomaly_index[patch_scan-class_1]", False),
        ("test_anomaly_index[patch_scan-class_?]", False),
        ("test_anomaly_index", False),
        ("class_7", False),
        ("test_anomaly_index[*-class_77]", False),
    ],
)
def test_only_a_star_in_an_acceptance_stands_for_other_text(pattern: str, *, matches: bool) -> None:
    assert accepted(pattern).matches("audit::test_anomaly_index[patch_scan-class_7]") is matches


def test_an_acceptance_with_many_stars_is_matched_at_once() -> None:
    """As a regular expression this takes years."""
    many = accepted("*a" * 40 + "*")
    assert many.matches("a" * 40)
    assert not many.matches("a" * 39 + "b" * 500)

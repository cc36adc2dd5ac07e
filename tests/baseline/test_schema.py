"""What a baseline file must hold, and how a broken one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.baseline import Baseline, baseline_of
from backdoor_audit.errors import BaselineError
from tests.subjects.baselines import record_of


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not a readable JSON file"),
        ("[]", "list at the top of the file"),
        ("{}", r"no baseline of schema version 1 \(found version None\)"),
        ('{"schema_version": 2, "acceptances": []}', r"found version 2\); make a new one with --audit-update-baseline"),
        ('{"schema_version": 1, "findings": {}}', "no baseline"),
        ('{"schema_version": 1, "acceptances": [], "colour": 1}', "a key is missing: model"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "b.json"
    file.write_text(content)
    with pytest.raises(BaselineError, match=told) as caught:
        Baseline.read(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("findings",), [], "findings: a list of 0 where an object belongs"),
        (("colour",), 1, "colour: a key that is not known"),
        (("data",), {"num_classes": 3}, r"a key is missing: data\.data_fingerprint"),
        (("data", "num_classes"), 0, "data.num_classes: 0 where a whole number of at least 1 or null belongs"),
        (("findings", "audit::x"), {"verdict": "pass"}, r"a key is missing: findings\['audit::x'\]\.statistic"),
        (("findings", "audit::x"), 3, r"findings\['audit::x'\]: 3 where an object belongs"),
        (("findings", "audit::test_precondition[accuracy]", "verdict"), "fine", "'fine' where pass or fail or inconcl"),
        (("findings", "audit::test_precondition[accuracy]", "value"), "0.9", "'0.9' where a number or null belongs"),
        (("findings", "audit::test_precondition[accuracy]", "value"), True, "True where a number or null belongs"),
        (
            ("findings", "audit::test_precondition[accuracy]", "target_class"),
            -1,
            "-1 where a whole number of at least 0",
        ),
        (("environment", "device"), None, "environment.device: None where a text belongs"),
        (("repairs", "x"), {"before": {}, "after": {}, "curve": [[1]]}, "a key is missing: repairs.x.before"),
    ],
)
def test_a_damaged_baseline_is_refused_where_it_is_damaged(
    tmp_path: Path, path: tuple[str, ...], value: object, told: str
) -> None:
    stored: Any = json.loads(json.dumps(baseline_of(record_of()).to_json()))
    part = stored
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    (tmp_path / "b.json").write_text(json.dumps(stored))
    with pytest.raises(BaselineError, match=told):
        Baseline.read(tmp_path / "b.json")

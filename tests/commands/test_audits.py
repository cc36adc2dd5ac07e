"""``backdoor-audit audits`` lists the shipped questions and copies them."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdoor_audit.cli import main
from backdoor_audit.questions.suite import Suite, shipped


def test_every_question_is_listed_with_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audits"]) == 0
    told = capsys.readouterr().out
    assert all(f"{question.name}\n    {question.words.asks}" in told for question in shipped().questions)
    assert "(anomaly_index 2, size_ratio 0.33, trigger_success 0.9, steering_success 0.5)" in told


def test_a_copy_is_a_suite_that_asks_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours"
    assert main(["audits", "--out", str(out)]) == 0
    assert f"--audit-suite={out}" in capsys.readouterr().out
    assert Suite.load(out).to_json() == shipped().to_json()


def test_a_folder_may_be_named_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["audits", "--out=~/ours"]) == 0
    assert Suite.load(tmp_path / "ours").to_json() == shipped().to_json()


@pytest.mark.parametrize("name", ["", "missing/ours", "a\0b"])
def test_a_folder_that_cannot_be_made_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audits", "--out", str(tmp_path / name)]) == 4
    told = capsys.readouterr().err
    assert "--out" in told
    assert len(told.splitlines()) == 1

"""The fleet on a Ray cluster of its own, where Ray is installed: the same verdicts, and what is lost is done again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.subjects.fleets import Fleet, asked

pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of which there are many


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of the cluster find this package where the tests do."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def test_tasks_give_what_processes_give_and_what_a_lost_worker_had_is_begun_again(
    place: Path, models: Callable[..., None], fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="good 0", b="bad 1", c="worker good 0", d="usage")
    assert fleet("a.pt", "b.pt", "c.pt", "d.pt", "--address=local", "--jobs=2") == 1
    printed = capsys.readouterr().out
    assert "it is audited again" in printed
    assert [line[:12].strip() for line in printed.splitlines()[-5:-1]] == ["fail", "not audited", "pass", "pass"]
    assert json.loads((place / "out" / "c" / "job.json").read_text())["attempts"] == 2
    assert len(asked(place)) == 5

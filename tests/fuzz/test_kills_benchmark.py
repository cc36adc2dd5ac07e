"""The benchmark of killed runs can fail: each thing that a killed or disturbed run must not leave is noticed."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save

from backdoor_audit.evidence import Finding, Record, Verdict
from benchmarks import disturbed
from benchmarks.altered_work import altered_piece
from benchmarks.disturbed import Gate, Row, Undisturbed

FINDING = Finding(audit="audit::test_x[y]", statistic="x", value=0.1, limit=1.0, verdict=Verdict.PASS, reason="fine")
PASSED = Record(
    subject={},
    settings={},
    environment={},
    detections=[],
    repairs=[],
    findings=[FINDING],
    skipped={},
    errors={},
    not_run=[],
    not_tested=[],
    seconds=3.0,
)
UNSURE = replace(PASSED, not_run=["audit::test_x[z]"])
SHORT = replace(PASSED, findings=[replace(FINDING, audit="audit::test_x[other]")])
USUAL = Undisturbed(0, disturbed.lasting(PASSED.to_json()), 1.0)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    made = Gate(tmp_path, "clean", 150)
    made.report.mkdir()
    made.store.mkdir(parents=True)
    return made


def left(gate: Gate, record: Record | None, code: int) -> Row:
    row = Row()
    if record is not None:
        record.write(gate.report / "audit.json")
    disturbed.after_disturbance(gate, code, row, USUAL)
    return row


@pytest.mark.parametrize(
    ("record", "code", "wrong"),
    [
        (PASSED, 0, []),
        (UNSURE, 1, []),
        (None, -9, []),
        (None, 0, ["exit code 0 with no record"]),
        (UNSURE, 0, ["exit code 0 with a record that is not whole"]),
        (SHORT, 1, ["a record that says pass and is not whole"]),
    ],
)
def test_a_killed_run_may_not_pass(gate: Gate, record: Record | None, code: int, wrong: list[str]) -> None:
    row = left(gate, record, code)
    assert row.wrong == wrong
    assert row.codes == {str(code): 1}


@pytest.mark.parametrize("name", ["audit.json", "audit.html", "audit.sarif", "audit.md", "report.html"])
def test_a_file_half_written_under_its_final_name_is_noticed(gate: Gate, name: str) -> None:
    (gate.report / name).write_text("")
    assert disturbed.half_written(gate) == [name]


def test_finished_work_cut_short_is_noticed_and_whole_work_is_not(gate: Gate) -> None:
    content = save({"x": torch.zeros(9)}, metadata={"values": "1"})
    (gate.store / "whole.safetensors").write_bytes(content)
    (gate.store / "short.safetensors").write_bytes(content[:-1])
    assert disturbed.half_written(gate) == ["short.safetensors"]


def test_another_record_another_exit_code_and_work_done_twice_are_wrong(gate: Gate) -> None:
    (gate.store / "a.safetensors").write_bytes(b"")
    SHORT.write(gate.report / "audit.json")
    row = Row()
    disturbed.after_end(gate, {"a.safetensors": 0}, 1, row, USUAL)
    assert (row.kept, row.lost) == (0, 1)
    assert [told.partition(":")[0] for told in row.wrong] == [
        "record.findings[0].audit",
        "exit code 1, undisturbed 0",
        "finished work was done again",
    ]


def test_the_same_record_at_another_time_is_right(gate: Gate) -> None:
    replace(PASSED, seconds=99.0).write(gate.report / "audit.json")
    row = Row()
    disturbed.after_end(gate, {}, 0, row, USUAL)
    assert row.wrong == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")
@pytest.mark.parametrize(
    ("way", "code", "left"), [("SIGKILL of all", -9, False), ("SIGTERM", -15, True), ("SIGKILL of one", -9, True)]
)
def test_what_a_kill_leaves_running_is_noticed_and_ended(
    way: str, code: int, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disturbed, "_LINGER", 0.2)
    program = "import subprocess; subprocess.Popen(['sleep', '60']); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert disturbed.kill(process, way) == (code, left)
    deadline = time.monotonic() + 10
    while disturbed.members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert disturbed.members(process.pid) == []


def test_every_alteration_of_a_piece_is_one() -> None:
    content = save({"x": torch.zeros(9)}, metadata={"values": "[1, 2]"})
    made = [altered_piece(Random(number), content) for number in range(300)]
    assert content not in made
    assert {len(piece) for piece in made} == {len(content)}
    assert len(set(made)) > 100

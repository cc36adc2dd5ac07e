"""Pipes and devices where the audit keeps its own files: a run neither waits for them nor reads them without end."""

import os
from pathlib import Path

import pytest

from backdoor_audit.questions.suite import shipped
from tests.subjects.toy_runs import Run, record_of


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: os.symlink("/dev/zero", file)])
def test_a_record_that_is_no_file_is_taken_away(run: Run, project: pytest.Pytester, make) -> None:
    (project.path / "backdoor-audit-report").mkdir()
    make(project.path / "backdoor-audit-report" / "audit.json")
    assert run("clean", process=True).ret == pytest.ExitCode.OK
    assert record_of(project).passes_gate
    assert not (project.path / "backdoor-audit-report" / "audit.json").is_symlink()


def test_a_suite_with_a_pipe_in_it_is_one_line(run: Run, project: pytest.Pytester) -> None:
    folder = Path(project.mkdir("mine"))
    for file in shipped().folder.glob("test_*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    os.mkfifo(folder / "test_zz.py")
    result = run("clean", "--audit-suite=mine", process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.startswith("ERROR")]
    assert "mine/test_zz.py cannot be read (a pipe, device or socket, not a regular file); a suite is a folder" in line

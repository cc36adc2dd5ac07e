"""The fuzz benchmark itself can fail: whatever a reader does wrong, it notices and names."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import benchmarks.fuzz.__main__ as fuzz
from backdoor_audit.errors import AuditError
from benchmarks.fuzz.kinds import Kind
from benchmarks.fuzz.sandbox import Limits, odd_text, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs children by fork")
LIMITS = Limits(memory=64 << 20, wall=30, cpu=20)  # a busy machine is slow to give memory
SOON = replace(LIMITS, wall=0.7)


def make(draw: Random, folder: Path) -> Path:
    file = folder / "x"
    file.write_text(str(draw.random()))
    return file


def accepts(file: Path) -> Iterable[str]:
    return [file.read_text()]


def refuses(_: Path) -> Iterable[str]:
    raise AuditError("x: no model; give one")


def raises_key_error(_: Path) -> Iterable[str]:
    return {}["nothing"]  # type: ignore[no-any-return]


def refuses_in_two_lines(_: Path) -> Iterable[str]:
    error = AuditError()
    error.args = ("one\ntwo",)
    raise error


def sleeps(_: Path) -> Iterable[str]:
    time.sleep(60)
    return []


def dies(_: Path) -> Iterable[str]:
    faulthandler.disable()  # pytest's would fill the terminal
    os.abort()


def exits(_: Path) -> Iterable[str]:
    os._exit(0)


def runs_a_program(_: Path) -> Iterable[str]:
    os.system("true")
    return []


def runs_code(_: Path) -> Iterable[str]:
    eval("1 + 1")  # noqa: S307 - what is to be noticed
    return []


def makes_the_canary(_: Path) -> Iterable[str]:
    Path("canary").touch()
    return []


def writes_elsewhere(_: Path) -> Iterable[str]:
    with open(f"/tmp/fuzz-{os.getpid()}", "w"):
        pass
    os.unlink(f"/tmp/fuzz-{os.getpid()}")
    return []


def takes_memory(_: Path) -> Iterable[str]:
    return [str(len(b"x" * (100 << 20)))]


def asks_for_too_much(_: Path) -> Iterable[str]:
    return [str(len(bytearray(1 << 40)))]


def shows_an_escape(_: Path) -> Iterable[str]:
    return ["\x1b[31m"]


FAULTS: dict[str, list[Callable[[Any], Iterable[str]]]] = {
    "accepted": [accepts],
    "refused": [refuses],
    "traceback": [raises_key_error],
    "odd text": [refuses_in_two_lines, shows_an_escape],
    "hang": [sleeps],
    "crash": [dies, exits],
    "code executed": [runs_a_program, runs_code, makes_the_canary, writes_elsewhere],
    "over memory": [takes_memory, asks_for_too_much],
}
PLANTED = [(result, read) for result, readers in FAULTS.items() for read in readers]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc to see memory")
@pytest.mark.parametrize(("result", "read"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_what_a_reader_does_is_noticed(result: str, read: Callable[[Any], Iterable[str]]) -> None:
    (outcome,) = run(Kind("planted", 1, make, read), [3], SOON if result == "hang" else LIMITS)
    assert (outcome.number, outcome.result) == (3, result)


def test_inputs_after_one_that_kills_its_process_are_read_all_the_same() -> None:
    def read(file: Path) -> Iterable[str]:
        return dies(file) if file.read_text() == str(Random("planted:1").random()) else []

    outcomes = list(run(Kind("planted", 1, make, read), range(4), LIMITS))
    assert [outcome.result for outcome in outcomes] == ["accepted", "crash", "accepted", "accepted"]


def test_an_input_that_cannot_be_made_is_the_fault_of_the_tool() -> None:
    def broken(_: Random, __: Path) -> Path:
        raise ValueError

    with pytest.raises(RuntimeError, match="input 0 cannot be made"):
        list(run(Kind("planted", 1, broken, accepts), [0], LIMITS))


@pytest.mark.parametrize("read", [accepts, raises_key_error])
def test_a_fault_is_printed_kept_and_the_exit_code(
    read: Callable[[Any], Iterable[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fuzz, "KINDS", (Kind("planted", 1, make, read),))
    monkeypatch.setattr(sys, "argv", ["fuzz", "--inputs=3", f"--keep={tmp_path / 'kept'}"])
    code = fuzz.main()
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if line.startswith("planted"))
    if read is accepts:
        assert (code, row[1:4]) == (0, ["3", "3", "0"])
        assert not (tmp_path / "kept").exists()
    else:
        assert (code, row[1:5]) == (1, ["3", "0", "0", "3"])
        assert "KeyError" in printed
        assert "--only planted:" in printed
        (kept,) = (tmp_path / "kept").iterdir()
        assert (kept / "input" / "x").exists()
        assert "KeyError" in (kept / "README").read_text()


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("two\nlines\tand a tab", False),
        ("\x1b[0m", True),
        ("a\x00", True),
        ("\u202e", True),
        ("\ud800", True),
        ("one\n  ::error::two", True),
        ("a ##[error]", True),
        ("std::vector", False),
        ("<!doctype html>\n::error::", False),
        ("<!doctype html><script>canary()</script>", True),
    ],
)
def test_texts_that_somebody_would_obey_are_odd(text: str, odd: bool) -> None:
    assert bool(odd_text(text)) is odd

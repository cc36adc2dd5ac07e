"""The exit code comes from a process in which the model's code does not run.

A model, its factory or a native library may end the process that runs them, with whatever exit code: `os._exit(0)` leaves no
trace. So a run that audits is split in two before anything of the model is loaded. The child runs pytest as ever. The parent
waits, and lets exit code 0 through only with a record on disk that this very run wrote, that is whole, and that passes the gate.
The price is a fork of a process that has imported pytest, some milliseconds; it comes before CUDA is touched.

Where a fork would not be safe or not possible (threads are running, CUDA is in use, another pytest runs around this one, a system
without fork) the run goes on in one process. Its exit code then follows its record as well, but a model that ends the process
ends it for good.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from backdoor_audit.errors import AuditError
from backdoor_audit.evidence import Record
from backdoor_audit.options import AuditOptions
from backdoor_audit.plugin.outcomes import Outcomes
from backdoor_audit.plugin.recording import RUN, Recorder, digest
from backdoor_audit.report.paths import RECORD

CHANNEL = pytest.StashKey["Channel"]()
REFUSED = pytest.StashKey[bool]()
"""Whether the run has a record that does not let the model through."""

_exit = os._exit  # as it is before a model's code could replace it
_MOST = 2**16  # bytes of a report; a pipe holds as much without a reader


@dataclass(frozen=True, slots=True)
class Channel:
    """The way from the child to its parent; what is said last counts."""

    descriptor: int

    def tell(self, **said: Any) -> None:
        """Say what came of the run: ``record``, its digest, or None if no audit was asked for."""
        with contextlib.suppress(OSError):
            os.write(self.descriptor, (json.dumps(said) + "\n").encode())


class Ending:
    """The outermost frame of a run of pytest: what comes out of it is what the process ends with."""

    running = 0  # runs of pytest inside each other, in this process

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> Generator[None, int | None, int | None]:
        """Let no exit code 0 past a record that refuses the model; end the child, if this is one."""
        Ending.running += 1
        try:
            code = yield
        except BaseException as error:
            if CHANNEL not in config.stash:
                raise
            code = _failed(error)
        finally:
            Ending.running -= 1
        if code == 0 and config.stash.get(REFUSED, False):
            code = int(pytest.ExitCode.TESTS_FAILED)
        if CHANNEL in config.stash:
            _end_child(config, int(code or 0))
        return code


def may_split() -> bool:
    """Whether this process can be forked without harm, and is not itself a run inside another one."""
    cuda = sys.modules.get("torch.cuda")
    in_use = cuda is not None and cuda.is_initialized()
    return hasattr(os, "fork") and threading.active_count() == 1 and not in_use and Ending.running == 1


def split(config: pytest.Config, options: AuditOptions) -> int | None:
    """Fork; None in the child, which has a `CHANNEL` in the config's stash now, and the exit code of the run in the parent."""
    reader, writer = os.pipe()
    alive, kept = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.close(kept)
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        atexit._clear()
        config.stash[CHANNEL] = Channel(writer)
        return None
    os.close(writer)
    os.close(alive)
    try:
        status = _waited(child)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            return _exit_code(os.waitstatus_to_exitcode(status), os.read(reader, _MOST), options)
        return _exit_code(os.waitstatus_to_exitcode(status), b"", options)
    finally:
        os.close(reader)
        os.close(kept)


def _failed(error: BaseException) -> int:
    """Say what ended the run, as pytest does; its exit code."""
    if isinstance(error, pytest.UsageError):
        for line in error.args:
            print(f"ERROR: {line}\n", file=sys.stderr)
        return int(pytest.ExitCode.USAGE_ERROR)
    traceback.print_exception(error)
    return int(pytest.ExitCode.INTERNAL_ERROR)


def _end_child(config: pytest.Config, code: int) -> None:
    """Leave the child, past whatever may have replaced `sys.exit` or waits to run at the end of the caller's program."""
    config._ensure_unconfigure()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    _exit(code)


def _end_with_parent(alive: int) -> None:
    """Wait for the parent's end of a pipe to close, however it ends; then nobody would read the verdict of this process."""
    with contextlib.suppress(OSError):
        os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _waited(child: int) -> int:
    """The wait status of the child; signals that ask for an end are passed on, and Ctrl-C reaches it by itself."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return os.waitpid(child, 0)[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(code: int, said: bytes, options: AuditOptions) -> int:
    """The exit code of the run, from what the child ended with and what is on disk."""
    lines = said.decode("utf-8", "replace").splitlines()
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    file = Path(options.report) / RECORD
    if "record" not in last:
        if code == pytest.ExitCode.USAGE_ERROR:
            return code
        return _ended_early(code, file, options)
    if code != 0 or last["record"] is None:
        return code if code >= 0 else 128 - code
    return 0 if _passes(file, last["record"]) else _refused(file)


def _passes(file: Path, written: str) -> bool:
    try:
        return digest(file) == written and Record.read(file).passes_gate
    except (OSError, AuditError):
        return False


def _refused(file: Path) -> int:
    _say(f"INCONCLUSIVE: pytest ended with exit code 0, but {file} is not a whole record that passes; exit code 1")
    return int(pytest.ExitCode.TESTS_FAILED)


def _ended_early(code: int, file: Path, options: AuditOptions) -> int:
    """Make an inconclusive record of what a run left that ended before it could judge."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with exit code {code}"
    reason = f"the process that ran the audit {how} before the audit was over; finished work is kept for the next run"
    recorder = Recorder(options)
    try:
        before = Record.read(file)
    except AuditError:
        before = recorder.finish(None, Outcomes(errors={RUN: reason}), [], date.today())
    recorder.record = Record(
        **{**{name: getattr(before, name) for name in before.__slots__}, "errors": {**before.errors, RUN: reason}}
    )
    with contextlib.suppress(OSError):
        recorder.folder.mkdir(parents=True, exist_ok=True)
    recorder.write(None, 1)
    verdict, left = recorder.record.verdict.value.upper(), ", ".join(map(str, recorder.written))
    _say(f"{verdict}: {reason}; evidence: {left or 'none could be written'}")
    for line in recorder.told:
        _say(line)
    return code if code > 0 else int(pytest.ExitCode.TESTS_FAILED)


def _say(line: str) -> None:
    print(f"backdoor_audit: {line}", file=sys.stderr, flush=True)

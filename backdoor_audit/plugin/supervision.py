"""The exit code comes from a process in which the model's code does not run.

A model, its factory or a native library may end the process that runs them, with whatever exit code: `os._exit(0)` leaves no
trace. So a run that audits is split in two before anything of the model is loaded. The child runs pytest as ever. The parent
waits, and lets exit code 0 through only with a record on disk that this very run wrote, that is whole, and that passes the gate.
The price is a fork of a process that has imported pytest, some milliseconds; it comes before CUDA is touched.

Where a fork would not be safe (threads are running, CUDA is in use) the same command is started again instead. Where that cannot
be either (`pytest.main` in another program, another pytest around this one, no fork) the run goes on in one process. Its exit
code then follows its record as well, but a model that ends the process ends it for good.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest

from backdoor_audit.errors import AuditError, OptionError
from backdoor_audit.evidence import Record
from backdoor_audit.options import AuditOptions
from backdoor_audit.plugin.asked import asked_for
from backdoor_audit.plugin.given import collects
from backdoor_audit.plugin.outcomes import Outcomes
from backdoor_audit.plugin.outputs import reports_of_others
from backdoor_audit.plugin.recording import RUN, Recorder, digest
from backdoor_audit.printable import printable
from backdoor_audit.report.paths import RECORD

CHANNEL = pytest.StashKey["Channel"]()
JUDGED = pytest.StashKey[bool]()
"""Set once a session has ended in this process, or a second one has and was judged."""
REFUSED = pytest.StashKey[bool]()
"""Whether the run, here or in a second process, did not let the model through."""

GUARDED = pytest.StashKey["Callable[[int], NoReturn]"]()
"""`os._exit` as it was before `guard_exit`."""

_PIPES = "BACKDOOR_AUDIT_PIPES"  # environment of a second process that was started and not forked
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
_ENDING = tuple(number for number in signal.Signals if number.name in ("SIGTERM", "SIGHUP", "SIGINT"))
"""Signals that ask for an end, as far as the system has them."""
_exit = os._exit  # as it is before a model's code could replace it
_AT_THE_END = 30.0  # s, for what libraries have registered to run then
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
        parent, *pipes = os.environ.pop(_PIPES, "").split(",")
        if parent == str(os.getppid()):  # else a variable that somebody has set: the run is supervised as any other
            _become_child(config, *map(int, pipes))
        asked = _is_audit(config)  # before plugins change what was asked
        guarded = config.stash.get(GUARDED, None)
        if guarded and not asked:
            os._exit = guarded  # type: ignore[assignment]
            guarded = None
        code: int | None = 1
        try:
            code = yield
        except BaseException as error:
            if CHANNEL not in config.stash and not (asked and _prompts()):
                judged = config.stash.get(JUDGED, False) and not config.stash.get(REFUSED, False)
                if isinstance(error, SystemExit) and not error.code and asked and not judged:
                    raise SystemExit("backdoor_audit: sys.exit(0) of a conftest or plugin passes no model") from None
                raise
            code = _failed(error, config.stash.get(CHANNEL, None))
        finally:
            Ending.running -= 1
            # what a program of somebody's own ends with is its matter
            if guarded and (Ending.running or not _is_pytests_own()):
                os._exit = guarded  # type: ignore[assignment]
        if code == 0 and config.stash.get(REFUSED, False):
            code = int(pytest.ExitCode.TESTS_FAILED)
        if code == 0 and not config.stash.get(JUDGED, False) and asked:
            _say("INCONCLUSIVE: an audit was asked for, and pytest ended without one; exit code 1")
            code = int(pytest.ExitCode.TESTS_FAILED)
        if CHANNEL in config.stash or (asked and code and _prompts()):
            _end_process(config, int(code or 0))
        if guarded and not code:
            os._exit = guarded  # type: ignore[assignment]
        return code


def may_split(config: pytest.Config) -> bool:
    """Whether this run can be given to a second process, and is not itself a second one, or inside another run."""
    return CHANNEL not in config.stash and Ending.running == 1 and (_may_fork() or _may_start(config))


def _may_fork() -> bool:
    """Whether a copy of this process would be whole: no threads that it would lack, no CUDA that it could not use."""
    cuda = sys.modules.get("torch.cuda")
    in_use = cuda is not None and cuda.is_initialized()
    return hasattr(os, "fork") and threading.active_count() == 1 and not in_use


def _may_start(config: pytest.Config) -> bool:
    """Whether the same command can be started again: this process is pytest's own, and nobody handed objects to it."""
    return _is_pytests_own() and os.name == "posix" and not config.invocation_params.plugins


def _is_pytests_own() -> bool:
    program = sys.argv[0] if sys.argv else ""
    return Path(program).name in ("pytest", "py.test") or program.endswith(os.path.join("pytest", "__main__.py"))


def _prompts() -> bool:
    """Whether Python, once pytest is through, would ask for input (``-i``) and then end with 0, whatever came out."""
    return _is_pytests_own() and bool(sys.flags.inspect or os.environ.get("PYTHONINSPECT"))


def guard_exit() -> Callable[[int], NoReturn]:
    """Let no thread and no handler of a conftest end this process in 0; `os._exit` as it was before."""
    before, here = os._exit, os.getpid()  # processes that are forked from it end as they want

    def never_zero(status: int) -> NoReturn:
        before(status or (int(pytest.ExitCode.TESTS_FAILED) if os.getpid() == here else 0))

    os._exit = never_zero
    return before


def split(config: pytest.Config, options: AuditOptions) -> int | None:
    """Run in a second process; None there, where the config's stash has a `CHANNEL`, and the exit code of the run here."""
    recorder = Recorder(options, reports_of_others(config))
    earlier = None if collects(config) else digest(recorder.folder / RECORD)
    if earlier is None:
        recorder.set_aside()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    reader, writer = os.pipe()
    alive, kept = os.pipe()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the child's end away
    try:
        started = None if _may_fork() else _started(config, writer, alive)
        child = started.pid if started else os.fork()
        if child == 0:
            atexit._clear()
            _become_child(config, writer, alive)
            return None
        os.close(writer)
        os.close(alive)
        status = _waited(child)
        if started:
            started.returncode = status
        os.set_blocking(reader, False)
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(reader, _MOST)
        code = _exit_code(os.waitstatus_to_exitcode(status), said, recorder, earlier)
        config.stash[REFUSED] = code != 0
        config.stash[JUDGED] = True
        return code
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        os.close(reader)
        os.close(kept)


def _become_child(config: pytest.Config, writer: int, alive: int) -> None:
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    config.stash[CHANNEL] = Channel(writer)


def _started(config: pytest.Config, writer: int, alive: int) -> subprocess.Popen[bytes]:
    """The same command, started anew: a copy of this process would lack its threads."""
    command = [sys.executable, "-m", "pytest", *map(str, config.invocation_params.args)]
    environment = {**os.environ, _PIPES: f"{os.getpid()},{writer},{alive}"}
    return subprocess.Popen(command, env=environment, pass_fds=(writer, alive), cwd=config.invocation_params.dir)


def _is_audit(config: pytest.Config) -> bool:
    """Whether an audit is asked for in this process, be it one that would have been refused."""
    if config.option.collectonly or hasattr(config, "workerinput"):
        return False
    try:
        return asked_for(config) is not None
    except OptionError:
        return True


def _failed(error: BaseException, channel: Channel | None) -> int:
    """Say what ended the run, as pytest does; its exit code."""
    if isinstance(error, pytest.UsageError):
        for line in error.args:
            print(f"ERROR: {line}\n", file=sys.stderr)
        if channel:
            channel.tell(usage=True)
        return int(pytest.ExitCode.USAGE_ERROR)
    if isinstance(error, KeyboardInterrupt):  # where pytest does not wait for it any more
        return int(pytest.ExitCode.INTERRUPTED)
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        _say(f"INCONCLUSIVE: the terminal cannot be written ({error.strerror}); read all of it, or write it to a file")
    else:
        for line in "".join(traceback.format_exception(error)).splitlines():
            print(" " * (len(line) - len(line.lstrip())) + printable(line), file=sys.stderr)
    return int(pytest.ExitCode.INTERNAL_ERROR)


def _end_process(config: pytest.Config, code: int) -> None:
    """Leave this process, past whatever may have replaced `sys.exit` or waits to run at the end of the caller's program."""
    config._ensure_unconfigure()
    late = threading.Timer(_AT_THE_END, _exit, (code,))
    late.daemon = True
    late.start()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # of the model's code as well, which may wait for ever
    late.cancel()
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
    """The wait status of the child; signals that ask for an end are passed on."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.signal(number, pass_on) for number in _ENDING}
    try:
        return os.waitpid(child, 0)[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(code: int, said: bytes, recorder: Recorder, earlier: str | None) -> int:
    """The exit code of the run, from what the child ended with, what it said, and what is on disk.

    ``earlier`` is for a run of the project's own tests alone: the digest of a record that lay there before, empty without one.
    """
    last: dict[str, Any] = {}
    for line in said.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):
            last = json.loads(line)
    if code == pytest.ExitCode.USAGE_ERROR and "usage" in last:
        recorder.put_back()
        return code
    file = recorder.folder / RECORD
    if "record" not in last and digest(file) == earlier:
        _say(f"the process that ran the tests {_how(code)}; no audit was in this run")
        return _failing(code)
    broken = code == pytest.ExitCode.INTERNAL_ERROR and last.get("record")
    silent = code == 0 and earlier is None and not last.get("record")  # where an audit was to be run
    if "record" not in last or broken or silent:
        return _ended_early(code, file, recorder)
    if code != 0 or last["record"] is None:
        return _failing(code) if code else code
    return 0 if _passes(file, last["record"]) else _refused(file)


def _passes(file: Path, written: str) -> bool:
    try:
        return digest(file) == written and Record.read(file).passes_gate
    except (OSError, AuditError):
        return False


def _refused(file: Path) -> int:
    _say(f"INCONCLUSIVE: pytest ended with exit code 0, but {file} is not a whole record that passes; exit code 1")
    return int(pytest.ExitCode.TESTS_FAILED)


def _ended_early(code: int, file: Path, recorder: Recorder) -> int:
    """Make an inconclusive record of what a run left that ended before it could judge."""
    reason = (
        f"the process that ran the audit {_how(code)} before the audit was over; finished work is kept for the next run"
    )
    try:
        before = Record.read(file)
    except AuditError:
        with contextlib.suppress(OSError):
            recorder.open()
        before = recorder.finish(None, Outcomes(errors={RUN: reason}), [], date.today())
    recorder.record = Record(
        **{**{name: getattr(before, name) for name in before.__slots__}, "errors": {**before.errors, RUN: reason}}
    )
    recorder.write(None, 1)
    verdict, left = recorder.record.verdict.value.upper(), ", ".join(map(str, recorder.written))
    _say(f"{verdict}: {reason}; evidence: {left or 'none could be written'}")
    for line in recorder.told:
        _say(line)
    if -code in _ENDING:
        return int(pytest.ExitCode.INTERRUPTED)
    return code if code > 0 else int(pytest.ExitCode.TESTS_FAILED)


def _how(code: int) -> str:
    """In what way a process ended."""
    if code == pytest.ExitCode.INTERNAL_ERROR:
        return "ended by an error of pytest or of a plugin (exit code 3; what it was stands above)"
    if code == pytest.ExitCode.INTERRUPTED:
        return "was interrupted"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with exit code {code}"


def _failing(code: int) -> int:
    """The exit code of a run whose process ended in that way: 0 never, and of a signal what shells give."""
    return 128 - code if code < 0 else code or int(pytest.ExitCode.TESTS_FAILED)


def _say(line: str) -> None:
    print(f"backdoor_audit: {line}", file=sys.stderr, flush=True)

"""Reads inputs where they can do no harm, and says what came of each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoor_audit import bounds
from backdoor_audit.errors import AuditError
from benchmarks.fuzz.alter import CANARY, CANARY_MODULE
from benchmarks.fuzz.commands import Refused
from benchmarks.fuzz.kinds import Kind
from benchmarks.fuzz.pictures import deep
from benchmarks.fuzz.records import WrongResultError, warm

FINE = ("accepted", "refused")
WRONG = ("traceback", "odd text", "wrong result", "hang", "crash", "over memory", "code executed")
"""What an input may come to, and what it may not."""

_TOOL_FAILED = 99
_MAKING = 120  # s
_FIRST = re.compile(r"\s*(::|.*##\[|.*##vso\[)")  # what a CI runner would obey
_MADE_BY = ("dataclasses", "collections", "jinja2", "typing", "enum", "functools", "torch._jit_internal", "torch._ops")


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading one input may take.

    ``memory`` (bytes) and ``seconds`` are told to the product as its own bounds; memory is also what a child may grow by, and
    twice that its address space. ``wall`` and ``cpu`` (s) end it.
    """

    memory: int = 1 << 30
    wall: float = 10.0
    cpu: int = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one input: one of `FINE` or `WRONG`; ``place`` is the same for inputs with the same fault. ``peak`` in MB."""

    number: int
    result: str
    place: str = ""
    detail: str = ""
    seconds: float = 0.0
    peak: float = 0.0


class Watch:
    """Notices code that does not come from our own files, writes outside of the scratch folder, programs and connections."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.seen, self.active = os.path.realpath(scratch), "", False
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """What happens in this block is noticed."""
        self.seen, self.active = "", True
        try:
            yield
        finally:
            self.active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and not self.seen:
            self.active = False  # what follows asks the system itself
            try:
                self.seen = self._noticed(event, arguments)
            finally:
                self.active = True

    def _noticed(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event in (
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.spawn",
            "socket.connect",
            "pty.spawn",
            "ctypes.dlopen",
        ):
            return f"{event} {arguments!r:.200}"
        if event == "subprocess.Popen":
            own = str(arguments[0]) == sys.executable and "backdoor_audit" in str(arguments[1])
            return "" if own else f"{event} {arguments[:2]!r:.200}"
        if event == "exec":
            name = str(getattr(arguments[0], "co_filename", "?"))
            caller = str(sys._getframe(2).f_globals.get("__name__", ""))
            own = not name.startswith("<") or name.startswith("<frozen") or caller.startswith(_MADE_BY)
            return "" if own else f"exec of {name} by {caller}"
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            return self._written(os.fsdecode(arguments[0]), arguments[2] if isinstance(arguments[2], int) else 0)
        return ""

    def _written(self, name: str, flags: int) -> str:
        whole = os.path.realpath(name)
        inside = whole.startswith((self.scratch, "/dev/null", "/dev/full"))
        return "" if inside or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else f"writes {whole}"


def prepare(scratch: Path) -> None:
    """Put the module that hostile inputs name into the working folder."""
    (scratch / f"{CANARY_MODULE}.py").write_text(f"open({CANARY!r}, 'w')\n\n\ndef make(*_):\n    return None\n")


def attempt(
    kind: Kind, number: int, watch: Watch, limits: Limits, *, made: Callable[[], object] = lambda: None
) -> Outcome:
    """Make one input in the working folder, which is the scratch folder, read it here, and say what came of it.

    ``made`` is called between the two.
    """
    folder, canary = Path("input"), Path(CANARY)
    _cleared(folder, canary)
    given = _made(kind, number, folder)
    place, detail, before = "", "", _status("VmRSS")
    _begin_peak()
    made()
    began = time.perf_counter()
    with warnings.catch_warnings(), bounds.allowing(bounds.Bounds(limits.memory, limits.wall)):
        warnings.simplefilter("ignore")
        try:
            with watch.on():
                shown = [str(text) for text in kind.read(given)]
            result, detail = "accepted", "; ".join(filter(None, map(odd_text, shown)))
            result = "odd text" if detail else result
        except (AuditError, pytest.UsageError, Refused) as error:
            detail = _odd_refusal(str(error))
            result = "odd text" if detail else "refused"
            detail = detail or str(error)[:500]
        except Exception as error:
            result = {MemoryError: "over memory", WrongResultError: "wrong result"}.get(type(error), "traceback")
            place, detail = _place(error), f"{type(error).__name__}: {error!s:.300}"
    seconds = time.perf_counter() - began
    if watch.seen or canary.exists():
        result, place, detail = "code executed", watch.seen or "the canary", watch.seen or "the canary was made"
    peak = _status("VmHWM") - before
    if peak * 2**20 > limits.memory and result in FINE:
        result, place = "over memory", "peak"
    return Outcome(number, result, place or (detail[:60] if result == "odd text" else ""), detail, seconds, peak)


def _cleared(folder: Path, canary: Path) -> None:
    """Nothing is left of the input before."""
    canary.unlink(missing_ok=True)
    if deep(folder):
        remove(folder)
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()


def _made(kind: Kind, number: int, folder: Path) -> Any:
    try:
        return kind.given(number, folder)
    except Exception as error:  # a fault of the tool must not count as the product's
        traceback.print_exc()
        raise SystemExit(_TOOL_FAILED) from error


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that is removed afterwards, however deep inputs are."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        yield folder
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder; Python's own way ends at its limit of recursion."""
    subprocess.run(["rm", "-rf", "--", str(folder)], check=False)


def odd_text(text: str) -> str:
    """What a terminal, a page or a CI runner would obey in a text that was shown; empty if nothing."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\n\t\u200c\u200d":
            return f"{character!r} in {text[max(0, text.index(character) - 40) :][:80]!r}"
    page = text.lstrip().lower().startswith("<!doctype html")
    if page:
        return "a script of the input's" if "<script>canary()" in text or "<img src=x" in text else ""
    obeyed = next((line for line in text.split("\n") if _FIRST.match(line)), "")
    return f"a runner's command: {obeyed[:80]!r}" if obeyed else ""


def _odd_refusal(text: str) -> str:
    lines = text.strip("\n").split("\n")
    return odd_text(text) or ("" if len(lines) == 1 and lines[0].strip() else f"{len(lines)} lines: {text[:80]!r}")


def _place(error: BaseException) -> str:
    """The innermost line of the product that the exception went through."""
    frames = traceback.extract_tb(error.__traceback__, limit=-200)
    ours = [frame for frame in frames if f"{os.sep}backdoor_audit{os.sep}" in frame.filename] or list(frames[-1:])
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"
    return f"{type(error).__name__} in {where}"


def run(kind: Kind, numbers: Sequence[int], limits: Limits) -> Iterator[Outcome]:
    """The outcome of each input, in forked children that may die; whatever one dies of is tried again by itself."""
    warm()
    waiting = list(numbers)
    while waiting:
        done = []
        for outcome in _child(kind, waiting, limits):
            done.append(outcome)
            if outcome.result in ("hang", "crash") and len(waiting) > 1:
                outcome = next(iter(_child(kind, [outcome.number], limits)))  # noqa: PLW2901 - what it comes to by itself
            yield outcome
        waiting = waiting[len(done) :]


def _child(kind: Kind, numbers: Sequence[int], limits: Limits) -> Iterator[Outcome]:
    """Outcomes from one child, up to and including the input that ended it."""
    receiving, sending = os.pipe()
    with scratch_folder() as scratch:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about threads: torch was told to use one
            process = os.fork()
        if not process:
            os.close(receiving)
            _read_all(kind, numbers, limits, scratch, sending)
        os.close(sending)
        ended = False
        try:
            with os.fdopen(receiving, "rb") as stream:
                for number in numbers:
                    _line(stream, _MAKING)
                    line, late = _line(stream, limits.wall)
                    if not line:
                        _end(process)
                        ended = True
                        yield _died(number, os.waitpid(process, 0)[1], late, limits)
                        return
                    yield Outcome(**json.loads(line))
        finally:
            if not ended:
                _end(process)
                os.waitpid(process, 0)


def _line(stream: Any, wall: float) -> tuple[bytes, bool]:
    """The next line, empty if the child died or ``wall`` seconds went by, and whether they did."""
    line, deadline = b"", time.monotonic() + wall
    while not line.endswith(b"\n"):
        ready = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]
        part = os.read(stream.fileno(), 1) if ready else b""
        if not part:
            return b"", not ready
        line += part
    return line, False


def _end(process: int) -> None:
    """End a child and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _died(number: int, status: int, late: bool, limits: Limits) -> Outcome:
    code = os.waitstatus_to_exitcode(status)
    if code == _TOOL_FAILED:
        raise RuntimeError(f"input {number} cannot be made")
    name = f"exit {code}" if code >= 0 else signal.Signals(-code).name
    if late or name == "SIGXCPU":
        return Outcome(number, "hang", "hang", f"over {limits.wall:g} s or {limits.cpu} s of CPU", limits.wall)
    return Outcome(number, "crash", name, f"the process ended by {name}")


def _read_all(kind: Kind, numbers: Iterable[int], limits: Limits, scratch: Path, sending: int) -> None:
    """The child: reads one input after the other and never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(scratch)
        prepare(scratch)
        tempfile.tempdir = str(scratch)
        os.environ.update(TMPDIR=str(scratch), PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(scratch))
        sys.dont_write_bytecode = True
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        torch.set_num_threads(1)
        most = int(_status("VmSize") * 2**20) + 2 * limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch = Watch(scratch)
        for number in numbers:
            spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + limits.cpu + 1, resource.RLIM_INFINITY))
            outcome = attempt(kind, number, watch, limits, made=lambda: os.write(sending, b"made\n"))
            os.write(sending, json.dumps(asdict(outcome)).encode() + b"\n")
        code = 0
    except SystemExit as ended:  # this and Ctrl-C out of an input end the child, as they would end the product
        code = _TOOL_FAILED if ended.code == _TOOL_FAILED else 1
    finally:
        os._exit(code)


def _begin_peak() -> None:
    """Let the peak of this process's memory begin anew, on a system that can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    """A figure of this process, MB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0

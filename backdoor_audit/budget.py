"""What a run may take: long loops ask now and then, and stop between two steps once time or memory is spent."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from backdoor_audit import control_groups
from backdoor_audit.errors import BudgetSpentError

LEAST_LEFT = 0.1  # of the memory that was available at the first look
_PAUSE = 0.1  # seconds between two looks at memory: a look takes 0.02 ms, and 0.3 ms once much was taken
_UNLIMITED = 2**60  # bytes; control groups without a limit say something larger
_GIB = 2**30

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
_over: ContextVar[threading.Event | None] = ContextVar("over", default=None)


@contextmanager
def until(deadline: float | None) -> Iterator[None]:
    """Work in this block ends by `BudgetSpentError` once `time.time` is past the deadline; None: no bound."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def unless(over: threading.Event) -> Iterator[None]:
    """Work in this block ends by `BudgetSpentError` once this is set: nobody waits for it any more."""
    token = _over.set(over)
    try:
        yield
    finally:
        _over.reset(token)


def check() -> None:
    """Raise `BudgetSpentError` if the deadline of the surrounding block has passed, or memory runs out.

    Cheap enough for every step of a loop.
    """
    over = _over.get()
    if over is not None and over.is_set():
        raise BudgetSpentError("what ran beside this has ended, and with it this")
    deadline = _deadline.get()
    if deadline is not None and time.time() > deadline:
        raise BudgetSpentError("the time budget was spent before this was done; raise --audit-budget")
    check_memory()


def check_memory() -> None:
    """Raise `BudgetSpentError` if memory runs out and this process is what took it: see `MemoryWatch`."""
    _watch.check()


@dataclass
class MemoryWatch:
    """Ends work before the system ends the process: the model may keep something of every call.

    That is when less than `LEAST_LEFT` of the memory that was available at the first look is left, and this process has taken
    more since then than what is left: it alone, or as much as its fellow workers. Available is what the system can give without
    swapping, or a control group allows. Nothing is watched where there is no /proc, as on macOS and Windows.
    """

    root: Path = Path("/")
    _resident: int | None = None
    _available: int = 0
    _due: float = 0.0

    def check(self) -> None:
        """Look, if the last look is a while ago."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _PAUSE
        resident = resident_memory(self.root)
        if resident is None:
            self._due = float("inf")
        elif self._resident is None:
            self._resident, self._available = resident, available_memory(self.root)
        elif resident - self._resident > LEAST_LEFT * self._available:  # else there is nothing to end
            taken, left = resident - self._resident, available_memory(self.root)
            if left < min(taken, LEAST_LEFT * self._available):
                raise BudgetSpentError(
                    f"memory was spent before this was done: {taken / _GIB:.1f} GiB taken since the run began, "
                    f"{max(left, 0) / _GIB:.1f} of {self._available / _GIB:.1f} GiB left; the model may keep something of "
                    "every call, else give it more memory, fewer workers (-n) or fewer images (--audit-max-images)"
                )


def resident_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process holds; None where the system does not tell."""
    try:
        return int((root / "proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that processes here can still take: of the machine, or of the narrowest control group around this process."""
    meminfo = _numbers(root / "proc/meminfo")
    return min([meminfo.get("MemAvailable:", _UNLIMITED // 1024) * 1024, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """What every control group with a limit has left, of both versions; cached files count as left."""
    for folder, first in control_groups.around(root, "memory"):
        limit, usage, prefix = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            if first
            else ("memory.max", "memory.current", "")
        )
        most, used = control_groups.number(folder / limit), control_groups.number(folder / usage)
        if most is not None and used is not None and most < _UNLIMITED:
            stat = _numbers(folder / "memory.stat")
            files = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
            yield most - used + files


def _numbers(file: Path) -> dict[str, int]:
    """The first number of every line, by the word before it."""
    try:
        rows = [line.split() for line in file.read_text().splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) > 1}
    except (OSError, ValueError):
        return {}


_watch = MemoryWatch()

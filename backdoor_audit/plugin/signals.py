"""How a process ends that somebody asks to: with a record of what is finished."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_AT_ONCE = 1.0  # s


class TerminatedError(KeyboardInterrupt):
    """Somebody asked this process to end, as CI runners do at their time limit; pytest ends as it does after Ctrl-C."""


class Signals:
    """SIGTERM ends the run as Ctrl-C does; handlers that somebody else has set are left alone.

    What comes twice at once, from the terminal or a group of processes and from the parent, counts once.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._supervised = False
        self._last = -_AT_ONCE
        self._waits = False
        self._due = 0
        self._spares = False

    def end_the_run(self, supervised: bool) -> None:
        """Take the signals over from now on. Supervised, the process is ours, and ends with the run."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._supervised = supervised
        for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
            if signal.getsignal(number) == usual:
                self._before[number] = signal.signal(number, self._came)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that is not ended half-way: a signal that comes meanwhile comes after it."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self._due:
            due, self._due = self._due, 0
            _end(due)

    def hold(self) -> None:
        """The next signal ends nothing: what is written now is written whole. One after that does, as something may hang."""
        self._spares = True

    def give_back(self) -> None:
        """Leave the signals as they were found; in a process of ours, which has nothing to do any more, they stay as they are."""
        for number, before in self._before.items():
            if not self._supervised:
                signal.signal(number, before)

    def _came(self, number: int, _frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if self._last - before < _AT_ONCE:
            return
        if self._waits:
            self._due = number
        elif self._spares:
            self._spares = False
        else:
            _end(number)


def _end(number: int) -> None:
    raise TerminatedError("SIGTERM") if number == signal.SIGTERM else KeyboardInterrupt

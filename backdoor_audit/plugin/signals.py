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
    """SIGTERM ends the run as Ctrl-C does; handlers that somebody else has set are left alone."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._supervised = False

    def end_the_run(self, supervised: bool) -> None:
        """Take the signals over from now on. Supervised, the process is ours, and ends with the run."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._supervised = supervised
        for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
            if signal.getsignal(number) == usual:
                self._before[number] = signal.signal(number, _Once())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that is not ended half-way: a signal that comes meanwhile comes after it."""
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def hold(self) -> None:
        """From now on no signal ends the process: what is written is written whole."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def give_back(self) -> None:
        """Leave the signals as they were found; in a process of ours, which has nothing to do any more, they stay held."""
        for number, before in self._before.items():
            if not self._supervised:
                signal.signal(number, before)


class _Once:
    """Ends the run once for what comes at once: from the terminal or a group of processes, and from the parent."""

    def __init__(self) -> None:
        self._last = -_AT_ONCE

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if self._last - before >= _AT_ONCE:
            raise TerminatedError("SIGTERM") if number == signal.SIGTERM else KeyboardInterrupt

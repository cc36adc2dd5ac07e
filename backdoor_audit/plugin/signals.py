"""How a process ends that somebody asks to: with a record of what is finished."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

_AT_ONCE = 1.0  # s


class TerminatedError(KeyboardInterrupt):
    """Somebody asked this process to end, as CI runners do at their time limit; pytest ends as it does after Ctrl-C."""


class Signals:
    """SIGTERM ends the run as Ctrl-C does; a handler that somebody else has set is left alone."""

    def __init__(self) -> None:
        self._before: Any = None

    def end_the_run(self, supervised: bool) -> None:
        """Take the signals over from now on. Supervised, a Ctrl-C comes from the terminal and from the parent: it counts once."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._before = signal.signal(signal.SIGTERM, _end)
        if supervised and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _Once())

    def hold(self) -> None:
        """From now on nothing ends the process: what is written is written whole."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def give_back(self) -> None:
        """Leave SIGTERM as it was found."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise TerminatedError("SIGTERM")


class _Once:
    def __init__(self) -> None:
        self._last = -_AT_ONCE

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if self._last - before >= _AT_ONCE:
            raise KeyboardInterrupt

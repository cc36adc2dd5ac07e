"""Runs one command that must not outlive whoever asked for it: ``python leash.py SECONDS COMMAND ...``.

The caller holds the other end of standard input. When that closes, however the caller ended, the command is ended; so it is
after so many seconds (0: no limit). Where the kernel offers it, the command also ends when this process is killed, as Ray does
with all that a lost worker has started. This is a script of its own, without imports of the package, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType

TIME_OUT = 124  # exit code of a command that took too long, as timeout(1) has it
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_PATIENCE = 20.0  # s that a command has to end by itself


def main(arguments: list[str]) -> int:
    """Run the command; its exit code, or 128 + N if signal N ended it."""
    limit = float(arguments[0]) or None
    child = subprocess.Popen(
        arguments[1:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_bound_to_this_process(),  # noqa: PLW1509 - no thread runs yet
    )

    def end(_number: int = 0, _frame: FrameType | None = None) -> None:
        threading.Thread(target=_end, args=(child,), daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    threading.Thread(target=_wait_for_caller, args=(child,), daemon=True).start()
    try:
        code = child.wait(limit)
    except subprocess.TimeoutExpired:
        _end(child)
        return TIME_OUT
    return code if code >= 0 else 128 - code


def _bound_to_this_process() -> Callable[[], object] | None:
    """What a child calls so that the kernel ends it with its parent; None where there is no such thing. No thread runs yet."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PDEATHSIG, int(signal.SIGTERM))


def _wait_for_caller(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):
        pass
    _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the command to end, and end it with all its processes if it does not."""
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

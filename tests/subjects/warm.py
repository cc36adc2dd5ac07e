"""A process that has imported what a gate imports, and begins every gate as a copy of itself: importing takes seconds.

The workers that a gate asks for are copies as well, made by a process that stands beside the gate from its beginning.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("warm_server.py")
PATIENCE = 600  # s


class Gate:
    """A run of ``python -m pytest``, or of a program, that has begun."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, asked: dict[str, object]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        self._server = server
        self._folder = folder
        self._began = time.perf_counter()
        self._result: pytest.RunResult | None = None
        assert server.stdin is not None
        server.stdin.write(json.dumps({"folder": str(folder), "environment": environment, **asked}) + "\n")
        server.stdin.flush()
        self.pid = int(self._told())

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it was waited for."""
        if self._result is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process, if it has not ended."""
        self.send_signal(signal.SIGKILL)

    def ended(self, patience: float = PATIENCE) -> pytest.RunResult:
        """What came of it, once it has ended; after so many seconds it is killed."""
        if self._result is None:
            watch = threading.Timer(patience, self.kill)
            watch.start()
            code = int(self._told())
            watch.cancel()
            said, told = (
                (self._folder / name).read_text(encoding="utf-8").splitlines() for name in ("stdout", "stderr")
            )
            print(*said, sep="\n")
            print(*told, sep="\n", file=sys.stderr)
            self._result = pytest.RunResult(code, said, told, time.perf_counter() - self._began)
        return self._result

    def _told(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the process that begins the gates has ended"
        return line


class Warm:
    """Processes that need not import first, one after the other."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._last: Gate | None = None

    def begin(self, folder: Path, *arguments: str) -> Gate:
        """Begin pytest with these arguments in this folder."""
        return self._begin(folder, {"arguments": arguments})

    def run(self, folder: Path, *arguments: str) -> pytest.RunResult:
        """What came of pytest with these arguments in this folder."""
        return self.begin(folder, *arguments).ended()

    def begin_program(self, folder: Path, text: str, *arguments: str) -> Gate:
        """Begin ``python -c text`` with these arguments in this folder."""
        return self._begin(folder, {"program": text, "arguments": arguments})

    def _begin(self, folder: Path, asked: dict[str, object]) -> Gate:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER.read_text()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self._end_last()
        self._last = Gate(self._server, folder, asked)
        return self._last

    def _end_last(self) -> None:
        """A test that failed may have left one, and the server waits for it."""
        if self._last is not None:
            self._last.kill()
            self._last.ended()

    def close(self) -> None:
        """End the process."""
        self._end_last()
        if self._server is not None:
            self._server.communicate()

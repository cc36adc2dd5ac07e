"""One model through the gate, in a process of its own; what it left, as values that travel between machines."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backdoor_audit.fleet import leash

GATE = ("-m", "pytest", "-q")
"""What the interpreter is called with; the model, the images, the folder for evidence and further options follow."""

LOG = "gate.log"
_LONGEST_LOG = 2**20  # bytes, the last ones
_LARGEST = 2**29  # bytes of a file of evidence: the model's code may have written there
_LEFT_OUT = ("GITHUB_STEP_SUMMARY", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER")
"""Environment variables that are about the run around the fleet."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of one process: the arguments of the interpreter, where, in which environment, and for how long at most."""

    arguments: tuple[str, ...]
    folder: str
    environment: Mapping[str, str] = field(default_factory=dict)
    time_limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code, the files it left by name, how long it took."""

    exit_code: int
    files: Mapping[str, bytes]
    seconds: float


class Running:
    """A gate at work. Its evidence goes to a folder of its own until it is collected."""

    def __init__(self, order: Order) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="backdoor_audit-")
        self._evidence = Path(self._scratch.name) / "evidence"
        self._began = time.perf_counter()
        kept = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
        command = [sys.executable, "-I", str(Path(leash.__file__)), str(order.time_limit), sys.executable]
        with (Path(self._scratch.name) / LOG).open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    [*command, *order.arguments, f"--audit-report={self._evidence}"],
                    cwd=order.folder,
                    env={**kept, **order.environment},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            except BaseException:
                self._scratch.cleanup()
                raise

    def ended(self) -> bool:
        """Whether the process is over."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Let go of the leash: the process ends, and what it left is dropped."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._scratch.cleanup()

    def collected(self) -> Ended:
        """What it left; waits for its end."""
        code = self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        seconds = time.perf_counter() - self._began
        found = [file for file in self._evidence.rglob("*") if file.is_file() and not file.is_symlink()]
        kept = sorted(file for file in found if file.stat().st_size <= _LARGEST)
        files = {file.relative_to(self._evidence).as_posix(): file.read_bytes() for file in kept}
        files[LOG] = (Path(self._scratch.name) / LOG).read_bytes()[-_LONGEST_LOG:]
        self._scratch.cleanup()
        return Ended(code, files, seconds)


def run(order: Order) -> Ended:
    """Run one gate to its end; what a task of a cluster does."""
    if not os.path.isdir(order.folder):
        raise FileNotFoundError(
            f"{order.folder} is not on this machine; a fleet needs a folder that all machines share"
        )
    running = Running(order)
    try:
        return running.collected()
    except BaseException:
        running.stop()
        raise


def order_for(
    model: Path,
    data: str,
    *,
    cache: Path,
    options: Sequence[str],
    environment: Mapping[str, str],
    time_limit: float,
) -> Order:
    """The order to audit one model. Paths are made absolute, as the process may run on another machine."""
    where = data if data.startswith("torchvision:") else os.path.abspath(data)
    arguments = (
        *GATE,
        f"--audit-model={model.absolute()}",
        f"--audit-data={where}",
        "-o",
        f"cache_dir={cache.absolute()}",
    )
    return Order((*arguments, *options), os.getcwd(), dict(environment), time_limit)

"""The program of `warm`: reads what to begin from its input, and writes the process's number and what it ended with.

It stands alone, so that a gate finds no module of these tests among those that are imported.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import execnet.gateway_io
import hypothesis  # noqa: F401  # like those below: for the gates
import matplotlib.backends.backend_svg  # noqa: F401
import pytest
import pytest_html  # noqa: F401
import torch._dynamo  # noqa: F401
import torchvision.models  # noqa: F401
import xdist  # noqa: F401
from execnet.gateway_base import Popen2IO

import backdoor_audit.gate
import backdoor_audit.report.extras  # noqa: F401
from backdoor_audit.report import html
from backdoor_audit.run import effort

_MOST = 2**16  # bytes of an environment


def begin(asked: dict[str, Any]) -> None:
    """Become what was asked for, as a shell would begin it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _enter(asked)
    for number, name in enumerate((os.devnull, "stdout", "stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.path[0] = asked["folder"]
    if "program" in asked:
        sys.argv = ["-c", *asked["arguments"]]
        exec(compile(asked["program"], "<string>", "exec"), {"__name__": "__main__"})
        sys.exit()
    if any(argument.startswith("-n") for argument in asked["arguments"]):
        execnet.gateway_io.Popen2IOMaster = _worker_from(_beside(make_workers))  # type: ignore[misc]
    sys.argv = [os.path.join(os.path.dirname(pytest.__file__), "__main__.py"), *asked["arguments"]]
    sys.exit(pytest.console_main())


def _enter(asked: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])


def _beside(work: Callable[[socket.socket], None]) -> socket.socket:
    """Begin a process that works beside this one; what it is spoken to by."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        work(there)
        os._exit(0)
    there.close()
    return here


def make_workers(asked: socket.socket) -> None:
    """Make a worker of every three pipes that are sent, until nobody can ask any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        message, pipes, _, _ = socket.recv_fds(asked, _MOST, 3)
        if not message:
            return
        worker = os.fork()
        if worker == 0:
            asked.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become_worker(json.loads(message), *pipes)
        for pipe in pipes:
            os.close(pipe)
        asked.sendall(worker.to_bytes(4, "little"))


def _become_worker(asked: dict[str, Any], reader: int, writer: int, alive: int) -> None:
    """What ``python -u -c`` does with the line that execnet gives it; the last pipe closes when the worker has ended."""
    _enter(asked)
    os.set_inheritable(alive, False)
    for number, pipe in enumerate((reader, writer)):
        os.dup2(pipe, number)
        os.close(pipe)
    sys.argv = ["-c"]
    sys.path[0] = ""
    exec(eval(sys.stdin.readline()), {"__name__": "__main__"})  # noqa: S307  # from the gate's own execnet
    sys.exit()


def _worker_from(maker: socket.socket) -> type[Popen2IO]:
    class Worker(Popen2IO):
        """A worker's pipes, as `execnet.gateway_io.Popen2IOMaster` has them."""

        def __init__(self, _arguments: list[str], execmodel: Any) -> None:
            (reader, here), (back, writer), (self._ended, alive) = os.pipe(), os.pipe(), os.pipe()
            asked = {"folder": os.getcwd(), "environment": dict(os.environ)}
            socket.send_fds(maker, [json.dumps(asked).encode()], [reader, writer, alive])
            for pipe in (reader, writer, alive):
                os.close(pipe)
            self._worker = int.from_bytes(maker.recv(4), "little")
            super().__init__(os.fdopen(here, "wb"), os.fdopen(back, "rb"), execmodel=execmodel)

        def wait(self) -> None:
            os.read(self._ended, 1)

        def kill(self) -> None:
            os.kill(self._worker, signal.SIGKILL)

    return Worker


def serve() -> None:
    """Begin one process after the other."""
    for template in ("page.html.j2", "section.html.j2", "answer.html.j2", "parts.html.j2"):
        html._environment().get_template(template)
    effort._A_LOOK, effort._A_MEASUREMENT = 0.02, 0.05  # s; how fast a toy is need not be known well
    gc.collect()
    gc.freeze()  # or each copy would touch every page of what was imported
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            begin(json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()

"""A process that has imported what a gate imports, and begins every gate as a copy of itself: importing takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = """
import json, os, sys
import hypothesis, matplotlib.backends.backend_svg, pytest, pytest_html, torch._dynamo, torchvision.models, xdist
import backdoor_audit.gate, backdoor_audit.report.extras, backdoor_audit.report.html

for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    for number, name in enumerate((os.devnull, "stdout", "stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = [os.path.join(os.path.dirname(pytest.__file__), "__main__.py"), *asked["arguments"]]
    sys.path.insert(0, asked["folder"])
    sys.exit(pytest.console_main())
"""


class Warm:
    """Runs of ``python -m pytest`` in processes of their own, one after the other."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, folder: Path, *arguments: str) -> pytest.RunResult:
        """What came of pytest with these arguments in this folder."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        began = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        asked = {"folder": str(folder), "arguments": arguments, "environment": environment}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        code = self._server.stdout.readline()
        assert code, "the process that begins the gates has ended"
        said, told = ((folder / name).read_text(encoding="utf-8").splitlines() for name in ("stdout", "stderr"))
        print(*said, sep="\n")
        print(*told, sep="\n", file=sys.stderr)
        return pytest.RunResult(int(code), said, told, time.perf_counter() - began)

    def close(self) -> None:
        """End the process."""
        if self._server is not None:
            self._server.communicate()

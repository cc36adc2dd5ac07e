import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.jobs import finished

ROOT = Path(__file__).parents[2]


def square(number):
    if number < 0:
        raise ValueError(number)
    return number * number


def wait_and_write(path):
    path.with_suffix(".begun").write_text(str(os.getpid()))
    time.sleep(60)
    path.write_text("done")


def test_every_task_gets_its_own_result_or_error():
    answers = {}
    for task, result in finished(square, [1, 2, -3], jobs=2):
        if task < 0:
            with pytest.raises(ValueError, match="-3"):
                result()
        else:
            answers[task] = result()
    assert answers == {1: 1, 2: 4}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")
def test_workers_end_with_a_killed_parent(tmp_path):
    file = tmp_path / "piece"
    code = (
        "from pathlib import Path\nfrom benchmarks.jobs import finished\nfrom tests.benchmarks.test_jobs import wait_and_write\n"
        f"if __name__ == '__main__':\n    list(finished(wait_and_write, [Path({str(file)!r})], 1))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    begun = file.with_suffix(".begun")
    deadline = time.monotonic() + 60
    while not (begun.exists() and begun.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    worker = int(begun.read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(worker)
    assert not file.exists()


def alive(process):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"

"""Every reader of the product takes a broken or hostile input, or refuses it in one printable line. ``python -m benchmarks.fuzz``
does the same with as many as one likes, in processes that may die.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import sandbox
from benchmarks.fuzz.kinds import KINDS, Kind
from benchmarks.fuzz.records import warm

LIMITS = sandbox.Limits(memory=1 << 30)
ROOT = Path(__file__).parents[2]
PATIENCE = 60  # s; a busy machine is no hang
EXAMPLES = {"folder": 10, "record": 10, "compare": 10}
"""Fewer where an input is many files or becomes a page; 30 for all others. ``python -m benchmarks.fuzz`` reads thousands."""


@pytest.fixture(scope="module")
def watch() -> Iterator[sandbox.Watch]:
    """The scratch folder is the working folder, as inputs have relative names."""
    warm()
    with sandbox.scratch_folder() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.chdir(scratch)
        sandbox.prepare(scratch)
        yield sandbox.Watch(scratch)


@contextmanager
def in_time() -> Iterator[None]:
    """A reader that waits for ever is interrupted."""

    def late(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"over {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs alarms")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_input_is_accepted_or_refused_in_one_printable_line(kind: Kind, watch: sandbox.Watch) -> None:
    @settings(
        derandomize=True,
        max_examples=EXAMPLES.get(kind.name, 30),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(number=st.integers(0, 10**9))
    def holds(number: int) -> None:
        with in_time():
            outcome = sandbox.attempt(kind, number, watch, LIMITS)
        assert outcome.result in sandbox.FINE, (
            f"python -m benchmarks.fuzz --only {kind.name}:{number}: {outcome.detail}"
        )

    holds()


DIGESTS = """
import hashlib, os, sys, tempfile
from pathlib import Path
from benchmarks.fuzz.kinds import KINDS
for kind in KINDS:
    for number in range(5):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            os.chdir(name)
            Path("input").mkdir()
            digest = hashlib.sha256(repr(kind.given(number, Path("input"))).encode("utf-8", "replace"))
            for root, _, files in sorted(os.walk(b"input")):
                for file in sorted(os.path.join(root, file) for file in files):
                    digest.update(file)
                    if os.path.isfile(file) and not os.path.islink(file) and os.path.getsize(file) < 1 << 24:
                        with open(file, "rb") as content:
                            digest.update(content.read())
            print(kind.name, number, digest.hexdigest())
"""


def test_input_number_n_is_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, and in one that orders sets otherwise."""
    env = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    elsewhere = subprocess.run(
        [sys.executable, "-c", DIGESTS], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    ).stdout
    monkeypatch.chdir(tmp_path)
    here = io.StringIO()
    with redirect_stdout(here):
        exec(DIGESTS, {})
    monkeypatch.chdir(tmp_path)
    assert here.getvalue().splitlines() == elsewhere.splitlines()

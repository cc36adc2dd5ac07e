"""Runs of the gate that are disturbed: how one is begun and killed, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from backdoor_audit.errors import AuditError
from backdoor_audit.evidence import Record, Verdict

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = ("badnets", "clean")
"""One that fails and one that passes: after a kill only the latter could be let through by mistake."""
_PASSING = ("seconds", "recalled", "began", "finished")
"""Keys of a record that differ between two runs of the same."""
AGAIN = "the work was done again"
PATIENCE = 60.0  # s that a run may take to end after a signal that it can handle
_LINGER = 10.0  # s after that


@dataclass
class Row:
    """What came of all runs that were disturbed in one way; ``wrong`` is each thing that should not be."""

    runs: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    partial: int = 0
    kept: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)

    def line(self, way: str) -> str:
        """Figures as text."""
        codes = " ".join(f"{code}:{count}" for code, count in sorted(self.codes.items()))
        records = " ".join(f"{what}:{count}" for what, count in sorted((+self.records).items()))
        return f"{way:22}{self.runs:6}{len(self.wrong):7}{self.kept:10}{self.lost:6}{self.partial:9}  {codes:26}  {records}"


HEAD = f"{'disturbed by':22}{'runs':>6}{'wrong':>7}{'recalled':>10}{'lost':>6}{'partial':>9}  {'exit codes':26}  records after it"


@dataclass(frozen=True)
class Gate:
    """A run of the gate on one of `MODELS`, in a project folder of its own."""

    project: Path
    model: str
    images: int
    more: tuple[str, ...] = ()

    @property
    def report(self) -> Path:
        """Where its record is."""
        return self.project / "report"

    @property
    def store(self) -> Path:
        """Where its finished work is."""
        return self.project / "cache" / "d" / "backdoor_audit"

    def start(self) -> subprocess.Popen[bytes]:
        """Begin, in a group of processes of its own."""
        self.project.mkdir(exist_ok=True)
        (self.project / "pyproject.toml").write_text("[tool.backdoor_audit]\n")
        model, data = FIXTURES / "models" / f"{self.model}.safetensors", FIXTURES / "fashion_mnist.npz"
        options = [f"--model={model}", f"--data={data}", "--audit-profile=quick", f"--audit-max-images={self.images}"]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            *options,
            "--audit-report=report",
            "-o",
            "cache_dir=cache",
            *self.more,
        ]
        with (self.project / "out.txt").open("ab") as out:
            return subprocess.Popen(
                command,
                cwd=self.project,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FIXTURES.parent)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> int:
        """Run to the end; the exit code."""
        (self.project / "out.txt").unlink(missing_ok=True)
        return self.start().wait()

    def record(self) -> Record | None:
        """Its record; None if there is none. Raises `AuditError` for one that is not whole."""
        file = self.report / "audit.json"
        return Record.read(file) if file.exists() else None

    def pieces(self) -> dict[str, int]:
        """Finished work, with the time at which it was written."""
        return {file.name: file.stat().st_mtime_ns for file in self.store.glob("*.safetensors")}


@dataclass(frozen=True)
class Undisturbed:
    """What a run came to that nobody disturbed, and how long it took."""

    code: int
    content: Any
    seconds: float


def lasting(value: Any) -> Any:
    """A record's content without what differs between two runs of the same."""
    if isinstance(value, Mapping):
        return {name: lasting(part) for name, part in value.items() if name not in _PASSING}
    return [lasting(part) for part in value] if isinstance(value, list) else value


def difference(before: Any, after: Any, path: str = "record") -> str:
    """The first place at which two contents differ; empty if there is none."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return next(filter(None, (difference(before[name], after[name], f"{path}.{name}") for name in before)), "")
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return next(filter(None, (difference(*pair, f"{path}[{place}]") for place, pair in pairs)), "")
    return "" if before == after else f"{path}: {before!r:.80} before, {after!r:.80} now"


def says(content: Any) -> Any:
    """What every item of a record came to, whoever computed it and from where: what a verdict follows from."""
    findings = sorted((entry["audit"], entry["verdict"], entry["value"]) for entry in content["findings"])
    return findings, sorted(content["skipped"]), sorted(content["errors"]), sorted(content["not_run"])


def half_written(gate: Gate) -> list[str]:
    """Files under a final name that are not whole."""
    checks: dict[str, Callable[[Path], bool]] = {
        "audit.html": lambda file: file.read_text().rstrip().endswith("</html>"),
        "report.html": lambda file: file.read_text().rstrip().endswith("</html>"),
        "audit.md": lambda file: file.stat().st_size > 0,
        "audit.sarif": lambda file: bool(json.loads(file.read_text())),
        "audit.json": lambda file: Record.read(file) is not None,
    }
    files = [
        *(gate.report / name for name in checks),
        *gate.report.rglob("*.safetensors"),
        *gate.store.glob("*.safetensors"),
    ]
    return [file.name for file in files if file.exists() and not _whole(file, checks.get(file.name, _opens))]


def _whole(file: Path, check: Callable[[Path], bool]) -> bool:
    try:
        return check(file)
    except (OSError, ValueError, AuditError, SafetensorError):
        return False


def _opens(file: Path) -> bool:
    with safe_open(file, framework="pt") as tensors:
        return bool(tensors.metadata())


def after_disturbance(gate: Gate, code: int | None, row: Row, usual: Undisturbed) -> None:
    """Judge what a disturbed run left: an exit code of 0 only beside a whole record that passes, and nothing half written."""
    row.codes[str(code)] += 1
    row.partial += len(list(gate.project.rglob("*.partial")))
    row.wrong += [f"{name} is half written" for name in half_written(gate)]
    with contextlib.suppress(AuditError):
        record = gate.record()
        verdict = record.verdict if record else None
        row.records[verdict.value if verdict else "none"] += 1
        whole = record is not None and says(record.to_json()) == says(usual.content)
        if code == 0 and not (whole and usual.code == 0):
            row.wrong.append(f"exit code 0 with {'a record that is not whole' if record else 'no record'}")
        if verdict is Verdict.PASS and not whole:
            row.wrong.append("a record that says pass and is not whole")


def after_end(gate: Gate, before: dict[str, int], code: int, row: Row, usual: Undisturbed) -> None:
    """Judge the run that was left to end: the same exit code and record, and nothing done twice."""
    record, pieces = gate.record(), gate.pieces()
    told = difference(usual.content, lasting(record.to_json())) if record else "no record"
    row.wrong += [told] * bool(told)
    row.wrong += [f"exit code {code}, undisturbed {usual.code}"] * (code != usual.code)
    lost = [name for name, written in before.items() if pieces.get(name) != written]
    row.lost += len(lost)
    row.kept += len(before) - len(lost)
    row.wrong += [f"finished work was done again: {name}" for name in lost]


def kill(process: subprocess.Popen[bytes], way: str) -> tuple[int | None, bool]:
    """End a run in one of `WAYS`: its exit code, None if it does not end, and whether something of it still ran later on."""
    with contextlib.suppress(ProcessLookupError):
        if way == "SIGKILL of all":
            os.killpg(process.pid, signal.SIGKILL)
        elif way == "SIGKILL of one":
            process.kill()
        else:
            process.send_signal(signal.Signals[way])
    code = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(PATIENCE)
    deadline = time.monotonic() + _LINGER
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = bool(members(process.pid))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return code, left


def members(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            found += [int(folder.name)] * (int(of) == group and state != "Z")
    return found


@dataclass(frozen=True)
class Bench:
    """Where runs take place, and what they come to undisturbed."""

    folder: Path
    images: int
    seed: int

    def gate(self, name: str, model: str, *more: str) -> Gate:
        """A run in a new project of that name."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Gate(self.folder / name, model, self.images, more)

    @cache  # noqa: B019 - one bench lives as long as the process
    def usual(self, model: str) -> Undisturbed:
        """A run to its end."""
        gate = self.gate(f"usual-{model}", model)
        began = time.monotonic()
        code = gate.finish()
        record = gate.record()
        assert record is not None, (gate.project / "out.txt").read_text()
        return Undisturbed(code, lasting(record.to_json()), time.monotonic() - began)

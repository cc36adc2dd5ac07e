"""What a gate run loses when it is killed: ``python -m benchmarks.kills [--runs N] [--full-disk N] [--store N] [--workers N]``.

Every run audits a small backdoored or clean model in a folder of its own, with the quick profile. It is killed at a random
moment, or works on a full disk, or beside altered finished work, or loses a worker; then a run is left to end on the same cache
and report folder. Asked of what was killed: exit code not 0, no file half written under its final name, no record that says pass.
Asked of the run that ended: the exit code and, but for times and marks of recalled work, the record of a run that nobody
disturbed, with nothing searched twice. One row is printed for each way; exit code 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from backdoor_audit.errors import AuditError
from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run.run import Run
from backdoor_audit.store import Packed, Store, key

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = ("badnets", "clean")
"""One that fails and one that passes: after a kill only the latter could be let through by mistake."""

WAYS = ("SIGKILL of all", "SIGKILL of one", "SIGTERM", "SIGINT")
_PASSING = ("seconds", "recalled", "began", "finished")
"""Keys of a record that differ between two runs of the same."""
_AGAIN = "the work was done again"
_PATIENCE = 60.0  # s that a run may take to end after a signal that it can handle
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
        code = process.wait(_PATIENCE)
    deadline = time.monotonic() + _LINGER
    while _members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = bool(_members(process.pid))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return code, left


def _members(group: int) -> list[int]:
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


def killed(bench: Bench, number: int) -> tuple[str, Row]:
    """Kill a run at a random moment and let another one end."""
    draw, row, way = Random(f"{bench.seed}:kill:{number}"), Row(1), WAYS[number % len(WAYS)]
    usual = bench.usual(model := MODELS[number // len(WAYS) % len(MODELS)])
    gate = bench.gate("killed", model)
    process = gate.start()
    time.sleep(draw.uniform(0.2, usual.seconds))
    code, left = kill(process, way)
    after_disturbance(gate, code, row, usual)
    row.wrong += [f"it did not end within {_PATIENCE:g} s"] * (code is None)
    row.records["still running"] += left
    before = gate.pieces()
    after_end(gate, before, gate.finish(), row, usual)
    return way, row


def without_room(bench: Bench, number: int) -> tuple[str, Row]:
    """Run with the cache or the report on a disk that is too small, then with room."""
    draw, row, name = Random(f"{bench.seed}:disk:{number}"), Row(1), ("cache", "report")[number % 2]
    usual = bench.usual(model := MODELS[number // 2 % len(MODELS)])
    gate = bench.gate("full", model)
    place = gate.project / name
    place.mkdir(parents=True)
    with _disk(place, draw.choice((8, 16, 40, 80, 120, 200))):
        after_disturbance(gate, gate.finish(), row, usual)
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        before = {} if name == "cache" else gate.pieces()
        after_end(gate, before, gate.finish(), row, usual)
    return f"full {name} folder", row


@contextlib.contextmanager
def _disk(place: Path, kilobytes: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def can_mount() -> bool:
    """Whether this process may make small disks."""
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", name]
        if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
            return False
        subprocess.run(["umount", name], check=True)
        return True


def without_worker(bench: Bench, number: int) -> tuple[str, Row]:
    """Kill one of two workers at a random moment; what is left may be right or not pass."""
    draw, row = Random(f"{bench.seed}:worker:{number}"), Row(1)
    usual = bench.usual(model := MODELS[number % len(MODELS)])
    gate = bench.gate("workers", model, "-n", "2")
    process = gate.start()
    while process.poll() is None and not _workers(process.pid):
        time.sleep(0.1)
    time.sleep(draw.uniform(0.0, 0.8) * usual.seconds)
    workers = _workers(process.pid)
    if workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
    code = process.wait()
    record = gate.record()
    after_disturbance(gate, code, row, usual)
    named = record is not None and any(
        "worker" in reason for reason in (*record.errors.values(), *record.not_run, *record.not_tested)
    )
    same = record is not None and says(record.to_json()) == says(usual.content)
    row.wrong += (
        [] if same or (code and record and named) else ["neither the same findings nor a record that names the worker"]
    )
    row.records["ended before"] += not workers
    return "a worker killed", row


def _workers(group: int) -> list[int]:
    return [process for process in _members(group) if b"exec(eval(" in _command(process)]


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class Remembering:
    """A store that remembers how to ask for each of its pieces."""

    store: Store
    asked: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)

    def recall(self, parts: Any, work: Any, *, pack: Any, unpack: Any) -> tuple[Any, bool]:
        """As `Store.recall`."""
        self.asked[key(parts)] = (parts, pack, unpack)
        return self.store.recall(parts, work, pack=pack, unpack=unpack)


class _DoneAgainError(Exception):
    """The work was asked for again."""


def altered_store(bench: Bench, alterations: int) -> tuple[str, Row]:
    """Alter pieces of a real store, each in another way, and ask for them; then run the gate beside altered pieces alone."""
    usual = bench.usual("badnets")
    folder, row = bench.folder / "altered", Row()
    shutil.rmtree(folder, ignore_errors=True)
    remembering = Remembering(Store(folder))
    options = AuditOptions(
        model=str(FIXTURES / "models" / "badnets.safetensors"),
        data=str(FIXTURES / "fashion_mnist.npz"),
        profile="quick",
        max_images=bench.images,
        device="cpu",
    )
    list(shipped().answers(Run(options, cast(Store, remembering), shipped())))
    names = sorted(remembering.asked)
    for number in tqdm(range(alterations), desc="altered", unit="file", disable=None):
        draw = Random(f"{bench.seed}:store:{number}")
        row.runs += 1
        _asked(remembering, folder / f"{draw.choice(names)}.safetensors", draw, row)
    gate = Gate(bench.folder / "usual-badnets", "badnets", bench.images)
    for file in gate.store.glob("*.safetensors"):
        file.write_bytes(altered_piece(Random(f"{bench.seed}:{file.name}"), file.read_bytes()))
    after_end(gate, {}, gate.finish(), row, usual)
    row.wrong += [] if _AGAIN in (gate.project / "out.txt").read_text() else ["no word about altered work"]
    return "altered finished work", row


def _asked(remembering: Remembering, file: Path, draw: Random, row: Row) -> None:
    """Alter one piece, ask for it, and put it back."""
    parts, _, unpack = remembering.asked[file.stem]
    content = file.read_bytes()
    kept = _packed(remembering, file)
    file.write_bytes(altered_piece(draw, content))

    def again() -> Any:
        raise _DoneAgainError

    def unpacked(packed: Packed) -> Packed:
        unpack(packed)
        return packed

    try:
        found, _ = remembering.store.recall(parts, again, pack=unpack, unpack=unpacked)
        row.records["read, unchanged" if _same(found, kept) else "taken for a result"] += 1
        row.wrong += [] if _same(found, kept) else [f"{file.name}: altered work was taken for a result"]
    except _DoneAgainError:
        row.records["done again"] += 1
    except Exception as error:
        row.wrong.append(f"{file.name}: {type(error).__name__}: {error!s:.100}")
    finally:
        file.write_bytes(content)


def _packed(remembering: Remembering, file: Path) -> Packed:
    """What a piece holds."""
    parts, _, _ = remembering.asked[file.stem]
    packed, _ = remembering.store.recall(
        parts, lambda: None, pack=lambda _: Packed({}, {}), unpack=lambda packed: packed
    )
    return cast(Packed, packed)


def _same(found: Packed, kept: Packed) -> bool:
    tensors = found.tensors.keys() == kept.tensors.keys() and all(
        torch.equal(found.tensors[name], tensor) for name, tensor in kept.tensors.items()
    )
    return tensors and found.values == kept.values


def altered_piece(draw: Random, content: bytes) -> bytes:
    """A file of the store with a bit flipped in its header or its tensors, or with another number in its values."""
    size = int.from_bytes(content[:8], "little")
    how = draw.randrange(3)
    digits = [at for at in range(8, 8 + size) if content[at : at + 1].isdigit()]
    if how == 0 and digits:
        at = draw.choice(digits)
        other = draw.choice([digit for digit in b"0123456789" if digit != content[at]])
        return content[:at] + bytes([other]) + content[at + 1 :]
    at = draw.randrange(8 + size) if how == 1 or len(content) == 8 + size else draw.randrange(8 + size, len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def main() -> int:
    """Disturb runs as asked, print a row for each way and what was wrong; 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=0, metavar="N", help="runs killed at random moments, by turns in four ways"
    )
    parser.add_argument(
        "--full-disk", type=int, default=0, metavar="N", help="runs without room for cache or report (needs root)"
    )
    parser.add_argument("--store", type=int, default=0, metavar="N", help="pieces of finished work to alter")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="runs with two workers, of which one is killed"
    )
    parser.add_argument(
        "--images", type=int, default=150, metavar="N", help="--audit-max-images (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here and leave it (default: a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks: list[tuple[Callable[[Bench, int], tuple[str, Row]], int]] = [
        *((killed, number) for number in range(options.runs)),
        *((without_worker, number) for number in range(options.workers)),
        *((altered_store, options.store) for _ in range(bool(options.store))),
    ]
    if options.full_disk and can_mount():
        tasks += [(without_room, number) for number in range(options.full_disk)]
    elif options.full_disk:
        print("full disk: skipped, this process may not mount a small disk (it needs root and mount)")
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder.resolve(), options.images, options.seed)
        for disturb, number in tqdm(tasks, unit="run", disable=None):
            way, row = disturb(bench, number)
            _add(rows.setdefault(way, Row()), row, f"{disturb.__name__} {number}")
    print("\n".join([HEAD, *(row.line(way) for way, row in rows.items())]))
    for way, row in rows.items():
        print("".join(f"wrong, {way}: {told}\n" for told in row.wrong), end="")
    return 1 if any(row.wrong for row in rows.values()) else 0


def _add(row: Row, more: Row, name: str) -> None:
    row.runs += more.runs
    row.codes += more.codes
    row.records += more.records
    row.partial += more.partial
    row.kept += more.kept
    row.lost += more.lost
    row.wrong += [f"{name}: {told}" for told in more.wrong]


if __name__ == "__main__":
    sys.exit(main())

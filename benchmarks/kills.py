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
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from benchmarks.altered_work import altered_store
from benchmarks.disturbed import HEAD, MODELS, PATIENCE, Bench, Row, after_disturbance, after_end, kill, members, says

WAYS = ("SIGKILL of all", "SIGKILL of one", "SIGTERM", "SIGINT")


def killed(bench: Bench, number: int) -> tuple[str, Row]:
    """Kill a run at a random moment and let another one end."""
    draw, row, way = Random(f"{bench.seed}:kill:{number}"), Row(1), WAYS[number % len(WAYS)]
    usual = bench.usual(model := MODELS[number // len(WAYS) % len(MODELS)])
    gate = bench.gate("killed", model)
    process = gate.start()
    time.sleep(draw.uniform(0.2, usual.seconds))
    code, left = kill(process, way)
    after_disturbance(gate, code, row, usual)
    row.wrong += [f"it did not end within {PATIENCE:g} s"] * (code is None)
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
    return [process for process in members(group) if b"exec(eval(" in _command(process)]


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


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

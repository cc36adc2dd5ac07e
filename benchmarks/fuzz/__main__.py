"""Every reader against broken and hostile input: ``python -m benchmarks.fuzz --inputs N [--kinds K,K] [--only KIND:NUMBER]``.

Valid inputs are made and altered, byte by byte and by structure, and hostile ones are written by hand. Each is read as the
product reads it, in a forked child whose memory, time and CPU are bounded, and whose code, programs, connections and writes are
watched. An input may be accepted, or refused in one printable line. Anything else is a fault: a traceback, text that a terminal
or a CI runner would obey, altered work taken for a result, a hang, a crash, memory above the limit, code executed. Printed are a
table by kind of input and one example per fault, the smallest, with the command that repeats it; exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.fuzz.kinds import KINDS, Kind
from benchmarks.fuzz.sandbox import FINE, WRONG, Limits, Outcome, run, scratch_folder

_COLUMNS = (*FINE, *WRONG)


@dataclass
class Row:
    """What came of the inputs of one kind."""

    counted: Counter[str] = field(default_factory=Counter)
    peak: float = 0.0
    slowest: float = 0.0
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        self.counted[outcome.result] += 1
        self.peak, self.slowest = max(self.peak, outcome.peak), max(self.slowest, outcome.seconds)

    def cells(self) -> list[str]:
        """Figures as text."""
        figures = [self.counted.total(), *(self.counted[name] for name in _COLUMNS)]
        return [*map(str, figures), f"{self.peak:.0f}", f"{self.slowest:.1f}", f"{self.seconds:.0f}"]


def shares(kinds: Sequence[Kind], inputs: int) -> dict[str, int]:
    """How many inputs each kind gets, by its share; at least one."""
    ends = [round(inputs * end / sum(kind.share for kind in kinds)) for end in accumulate(kind.share for kind in kinds)]
    return {kind.name: max(1, end - begin) for kind, begin, end in zip(kinds, [0, *ends], ends, strict=False)}


def table(rows: dict[str, Row]) -> list[str]:
    """The rows in lines, with a last one for all."""
    total = Row(
        sum((row.counted for row in rows.values()), Counter()),
        max(row.peak for row in rows.values()),
        max(row.slowest for row in rows.values()),
        sum(row.seconds for row in rows.values()),
    )
    head = ["inputs", *_COLUMNS, "peak MB", "slowest s", "s"]
    lines = [("kind", head), *((name, row.cells()) for name, row in rows.items()), ("all", total.cells())]
    return [
        f"{name:13}" + "".join(f"{cell:>{max(len(title), 4) + 2}}" for cell, title in zip(cells, head, strict=True))
        for name, cells in lines
    ]


def size_of(kind: Kind, number: int) -> int:
    """Bytes of an input: of several that show a fault, the smallest is kept."""
    here = Path.cwd()
    with scratch_folder() as folder:
        os.chdir(folder)
        try:
            Path("input").mkdir()
            kind.given(number, Path("input"))
        finally:
            os.chdir(here)
        counted = subprocess.run(["du", "-sb", str(folder)], check=False, capture_output=True, text=True)
    return int(counted.stdout.split()[0])


def examples(kind: Kind, faults: Iterable[Outcome]) -> dict[str, Outcome]:
    """The smallest input of the first few for each distinct fault."""
    found: dict[str, list[Outcome]] = {}
    for outcome in faults:
        found.setdefault(f"{outcome.result}: {outcome.place}", []).append(outcome)
    return {name: min(same[:20], key=lambda outcome: size_of(kind, outcome.number)) for name, same in found.items()}


def main() -> int:
    """Read the inputs, print what came of them; 1 if any came to anything but accepted or refused."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    chosen = [kind for kind in KINDS if not options.kinds or kind.name in options.kinds.split(",")]
    numbers = {
        name: range(options.first, options.first + count) for name, count in shares(chosen, options.inputs).items()
    }
    if options.only:
        name, _, number = options.only.partition(":")
        chosen, numbers = [kind for kind in KINDS if kind.name == name], {name: range(int(number), int(number) + 1)}
    limits = Limits(int(options.memory * 2**20), options.seconds, round(options.seconds))
    rows: dict[str, Row] = {}
    faults: dict[str, list[Outcome]] = {}
    with tqdm(total=sum(map(len, numbers.values())), unit="input", disable=None) as bar:
        for kind in chosen:
            rows[kind.name], faults[kind.name], began = Row(), [], time.monotonic()
            for start in range(0, len(numbers[kind.name]), options.batch):
                for outcome in run(kind, numbers[kind.name][start : start + options.batch], limits):
                    rows[kind.name].add(outcome)
                    faults[kind.name] += [outcome] * (outcome.result in WRONG)
                    bar.update()
                    bar.set_description(f"{kind.name}, {sum(map(len, faults.values()))} faults")
                    if options.only:
                        print(f"{outcome.result}: {outcome.detail} ({outcome.seconds:.1f} s, {outcome.peak:.0f} MB)")
            rows[kind.name].seconds = time.monotonic() - began
    print("\n".join(table(rows)))
    print(
        f"limits: {options.memory:g} MB of memory above the start, {options.seconds:g} s of wall and of CPU time, each input"
    )
    for kind in chosen:
        for name, outcome in examples(kind, faults[kind.name]).items():
            print(f"\n{name}\n  {outcome.detail}\n  python -m benchmarks.fuzz --only {kind.name}:{outcome.number}")
            _keep(kind, outcome, options.keep)
    return 1 if any(faults.values()) else 0


def _keep(kind: Kind, outcome: Outcome, folder: Path | None) -> None:
    """Keep an input with what it does."""
    if folder is None:
        return
    place = folder / f"{kind.name}-{outcome.number}"
    place.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.fuzz --only {kind.name}:{outcome.number}"
    (place / "README").write_text(
        f"{outcome.result}: {outcome.place}\n{outcome.detail}\n{command}\n", errors="backslashreplace"
    )
    if not (place / "input").exists():
        (place / "input").mkdir()
        kind.given(outcome.number, place / "input")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(f"{kind.name} ({kind.share})" for kind in KINDS)
    parser.add_argument(
        "--inputs", type=int, default=1000, metavar="N", help="inputs of all kinds (default: %(default)s)"
    )
    parser.add_argument(
        "--kinds", default="", metavar="K,K", help=f"only these, by their shares: {known} (default: all)"
    )
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of the first input of each kind (default: 0)"
    )
    parser.add_argument("--only", default="", metavar="KIND:NUMBER", help="read this one input and say what came of it")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep one input per distinct fault here, with its command"
    )
    parser.add_argument("--batch", type=int, default=50, metavar="N", help="inputs per child (default: %(default)s)")
    parser.add_argument(
        "--memory", type=float, default=1024, metavar="MB", help="that one input may take (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10, metavar="S", help="wall and CPU, each input (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

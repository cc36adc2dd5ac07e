"""How far two models differ that hide the same: ``python -m benchmarks.regression_noise --data-root DIR [--search]``.

From the detections that ``benchmarks.verdicts`` has cached; without ``--search`` those that are missing are left out. Prints
the noise that ``backdoor_audit.baseline`` allows for, and what follows from it:

* **another clean model**: ordered pairs of clean subjects on the same images, seed 0: the largest rise of the anomaly index of
  any row, detector by detector and over all of them, and the largest factor by which a trigger of Neural Cleanse shrinks;
* **another seed** of split and search for the same subject: the same two, and the factor by which indices above the limit move;
* **properties**: the largest rise of the share of images that the search of each steers, among the same pairs of clean models,
  from the results of ``benchmarks.properties``;
* what the rule of ``backdoor_audit.baseline`` calls worse among pairs of clean models, between a clean and a backdoored
  one, and between two seeds of one.

Limits are chosen on the *development* half; the *report* half only says what they lead to.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from backdoor_audit.baseline import STEERED_NOISE, index_noise
from backdoor_audit.detectors import DETECTORS, BySize
from backdoor_audit.detectors import Row as ClassRow
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.metrics import Rate
from backdoor_audit.questions.suite import shipped_limits
from benchmarks.measured import RESULTS, of_subject
from benchmarks.zoo.build import read_table
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

HALVES = ("development", "report")
Entry = TypeVar("Entry")
RANK = {Verdict.PASS: 0, Verdict.INCONCLUSIVE: 1, Verdict.FAIL: 2}
Row = tuple[str, int | None]


@dataclass(frozen=True, eq=False)
class Measured:
    """Every row of one subject under one seed with the verdict on it, as far as it is known."""

    subject: Subject
    rows: dict[Row, tuple[ClassRow, Verdict]]

    def index(self, row: Row) -> float:
        """The anomaly index of a row, 0 where it is below or there is none."""
        return max(self.rows[row][0].index or 0.0, 0.0)


Pair = tuple[Measured, Measured]
Asked = Mapping[str, Any]


def measured(subject: Subject, root: Path, seed: int, *, search: bool) -> Measured:
    """What the audit's detectors say about a subject; without ``search``, those that are in the cache."""
    rows: dict[Row, tuple[ClassRow, Verdict]] = {}
    run = of_subject(subject, root, seed)
    for detector in DETECTORS:
        if search or run.has(detector):
            found = run.found(detector)
            for score in found.scores:
                rows[detector.name, score.target_class] = (
                    score,
                    found.judge(score.target_class, shipped_limits()).verdict,
                )
    return Measured(subject, rows)


def pairs_of_models(known: Sequence[Measured], *, backdoored: bool) -> list[Pair]:
    """A clean model and another one, clean or backdoored, on the same images, where some detector has seen both."""
    return [
        (before, after)
        for before, after in itertools.permutations(known, 2)
        if not before.subject.attack
        and bool(after.subject.attack) is backdoored
        and before.subject.data == after.subject.data
        and set(before.rows) & set(after.rows)
    ]


def pairs_of_seeds(first: Sequence[Measured], second: Sequence[Measured]) -> list[Pair]:
    """The same model under two seeds, both ways, where at least one detector has seen both."""
    both = [pair for pair in zip(first, second, strict=True) if set(pair[0].rows) & set(pair[1].rows)]
    return [*both, *((after, before) for before, after in both)]


def rises(pair: Pair, detector: str = "") -> list[float]:
    """How far the index of each row rises, of one detector or of all."""
    before, after = pair
    rows = set(before.rows) & set(after.rows)
    return [after.index(row) - before.index(row) for row in rows if detector in ("", row[0])]


def shrinking(pair: Pair) -> list[float]:
    """The factor by which each trigger of Neural Cleanse is smaller."""
    before, after = pair
    both = [(before.rows[row][0].measured, after.rows[row][0].measured) for row in set(before.rows) & set(after.rows)]
    sizes = [(there.size, here.size) for there, here in both if isinstance(there, BySize) and isinstance(here, BySize)]
    return [there / here for there, here in sizes if there and here]


def factors(pair: Pair) -> list[float]:
    """How far apart the two indices of each row are, larger over smaller, where both are above the limit."""
    before, after = pair
    indices = [sorted((before.index(row), after.index(row))) for row in set(before.rows) & set(after.rows)]
    return [larger / smaller for smaller, larger in indices if smaller > shipped_limits().anomaly_index]


def worse(pair: Pair) -> tuple[bool, bool]:
    """Whether some verdict is further from pass, and whether some index rises beyond its noise without that."""
    before, after = pair
    rows = set(before.rows) & set(after.rows)
    fallen = {row for row in rows if RANK[after.rows[row][1]] > RANK[before.rows[row][1]]}
    risen = [
        after.index(row) - before.index(row) > index_noise(before.index(row), after.index(row))
        for row in rows - fallen
        if after.rows[row][1] is before.rows[row][1]
    ]
    return bool(fallen), any(risen)


def spread(
    title: str, pairs: Sequence[Entry], of: Callable[[Entry], list[float]], *, each: bool = False
) -> dict[str, Any]:
    """Quantiles of the largest value of each pair (``each``: of all values), printed and returned."""
    found = [of(pair) for pair in pairs]
    values = [value for entry in found if entry for value in (entry if each else [max(entry)])]
    if not values:
        print(f"  {title:48} nothing in the cache")
        return {"n": 0}
    median, high, top = (float(np.quantile(values, share)) for share in (0.5, 0.95, 1.0))
    print(f"  {title:48} n {len(values):4d}   median {median:5.2f}   95 % {high:5.2f}   largest {top:5.2f}")
    return {"n": len(values), "median": round(median, 3), "q95": round(high, 3), "largest": round(top, 3)}


def called_worse(title: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """How many pairs the rule calls worse, printed and returned."""
    judged = [worse(pair) for pair in pairs]
    verdict, index = sum(fallen for fallen, _ in judged), sum(risen and not fallen for fallen, risen in judged)
    after = {pair[1].subject.name for pair, found in zip(pairs, judged, strict=True) if any(found)}
    low, high = Rate(verdict + index, len(pairs)).interval
    print(
        f"  {title:48} {verdict + index:4d} of {len(pairs):4d} [{low:.0%}, {high:.0%}]: {verdict} by a verdict, {index} by an "
        f"index alone; {len(after)} of {len({pair[1].subject.name for pair in pairs})} models"
    )
    return {"n": len(pairs), "by_verdict": verdict, "by_index_alone": index, "models": sorted(after)}


def steered_pairs(half: str) -> list[tuple[Asked, Asked]]:
    """Two clean models of a half on the same images, both ways: what every property found in them, by its name."""
    file = RESULTS / f"properties-{half}.json"
    stored = json.loads(file.read_text())["subjects"] if file.is_file() else []
    data = {subject.name: subject.data for subject in SUBJECTS}
    clean = [entry for entry in stored if not entry["attack"]]
    return [
        (before["properties"], after["properties"])
        for before, after in itertools.permutations(clean, 2)
        if data[before["subject"]] == data[after["subject"]]
    ]


def rise_of(name: str, pair: tuple[Asked, Asked]) -> list[float]:
    """How far the share that one property steers rises; nothing where it was not measured."""
    before, after = (entry[name]["value"] for entry in pair)
    return [] if before is None or after is None else [after - before]


def steered_worse(pair: tuple[Asked, Asked]) -> bool:
    """Whether some property is refuted only in the second model, or steers further than its noise."""
    before, after = pair
    refuted = any(after[name]["verdict"] != "pass" == before[name]["verdict"] for name in after)
    return refuted or any(max(rise_of(name, pair), default=0.0) > noise for name, noise in STEERED_NOISE.items())


def report(known: dict[tuple[str, int], list[Measured]]) -> dict[str, Any]:
    """Everything that is printed, half by half."""
    stored: dict[str, Any] = {}
    for half in HALVES:
        first, second = known[half, 0], known[half, 1]
        clean = pairs_of_models(first, backdoored=False)
        seeds = pairs_of_seeds(first, second)
        seeds_of = {
            title: [pair for pair in seeds if bool(pair[0].subject.attack) is backdoored]
            for title, backdoored in (("clean", False), ("backdoored", True))
        }
        print(f"{half} half\n another clean model")
        found = {"index": spread("largest rise of an index", clean, rises)}
        for detector in DETECTORS:
            found[detector.name] = spread(f"  of {detector.name}", clean, partial(rises, detector=detector.name))
        found["shrinking"] = spread("largest factor by which a trigger shrinks", clean, shrinking)
        print(" another seed")
        for title, pairs in seeds_of.items():
            found[f"index_seed_{title}"] = spread(f"largest rise of an index, {title}", pairs, rises)
            found[f"shrinking_seed_{title}"] = spread(f"largest shrinking factor, {title}", pairs, shrinking)
        found["factor_seed"] = spread("factor of an index above the limit", seeds, factors, each=True)
        print(" called worse")
        found["worse_clean"] = called_worse("clean -> clean", clean)
        found["worse_backdoored"] = called_worse("clean -> backdoored", pairs_of_models(first, backdoored=True))
        for title, pairs in seeds_of.items():
            found[f"worse_seed_{title}"] = called_worse(f"another seed, {title}", pairs)
        print(" properties")
        steered = steered_pairs(half)
        for name in STEERED_NOISE:
            found[name] = spread(f"largest rise of {name}", steered, partial(rise_of, name))
        hits = sum(map(steered_worse, steered))
        print(f"  {'clean -> clean called worse':48} {hits:4d} of {len(steered):4d}")
        found["worse_properties"] = {"n": len(steered), "worse": hits}
        stored[half] = found
    return stored


def main() -> None:
    """Read or search, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--search", action="store_true", help="search what the cache has not")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained = read_table()
    known = {
        (half, seed): [
            measured(entry, options.data_root, seed, search=options.search)
            for entry in SUBJECTS
            if entry.half == half and entry.name in trained
        ]
        for half in HALVES
        for seed in (0, 1)
    }
    stored = {"command": "python -m benchmarks.regression_noise", **report(known)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "regression_noise.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()

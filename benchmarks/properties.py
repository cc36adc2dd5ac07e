"""How often properties are refuted: ``python -m benchmarks.properties --data-root DIR [--half development|report] [--jobs N]``.

Asks every property of every subject of one half of the zoo, with the clean test images that the zoo sets aside for it and the
reference twins of its data set, and prints subject by subject what was found; then for each property how many clean models
it refutes (false alarms) and how many backdoored ones (detections), in how many of these the right class is named, and
seconds; and where the results of ``benchmarks.verdicts`` are there, how often detectors and properties stop a model together.
Limits are chosen on the *development* half; rates are quoted from the *report* half. Finished outcomes are kept in
``benchmarks/cache``, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backdoor_audit.evidence import Verdict
from backdoor_audit.model.metrics import Rate
from backdoor_audit.properties import PROPERTIES, Property, PropertyOutcome
from backdoor_audit.store import Packed, generator_for
from benchmarks.jobs import finished
from benchmarks.measured import RESULTS, STORE, of_subject
from benchmarks.zoo.build import read_table
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

Row = dict[str, Any]


def outcome(wanted: Property, subject: Subject, root: Path) -> tuple[PropertyOutcome, float]:
    """What a property finds in a subject, and the seconds it took, from the cache if it is there."""
    run = of_subject(subject, root)

    def work() -> Packed:
        began = time.process_time()
        natural = partial(run.properties.natural_rate, wanted)
        found = wanted(run.inputs.subject, generator=generator_for(0, wanted.name), natural=natural)
        return Packed({}, {"seconds": time.process_time() - began, "outcome": found.pack().values})

    parts = {"property": wanted, "model": run.inputs.fingerprint, "data": run.clean_set.fingerprint}
    stored = STORE.recall(parts, work, pack=lambda packed: packed, unpack=lambda packed: packed)[0].values
    return PropertyOutcome.unpack(Packed({}, stored["outcome"])), float(stored["seconds"])


def asked(subject: Subject, *, names: Sequence[str], root: Path, known: dict[str, Row]) -> Row:
    """What every property finds in one subject, beside what is hidden in it."""
    stored = known[subject.name]
    found = {}
    for wanted in PROPERTIES:
        if wanted.name not in names:
            continue
        result, seconds = outcome(wanted, subject, root)
        found[wanted.name] = {
            "verdict": result.verdict.value,
            "value": result.value,
            "limit": result.limit,
            "class": result.target_class,
            "spec": result.trigger.spec() if result.trigger else None,
            "tried": result.tried,
            "seconds": round(seconds, 1),
            "reason": result.reason,
            "strongest": result.details.get("strongest"),
        }
    targets = sorted({part["target_class"] for part in stored.get("triggers", [])} or {stored["target_class"]} - {None})
    return {"subject": subject.name, "attack": stored["attack"], "targets": targets, "properties": found}


def line(row: Row) -> str:
    """One subject in one line: for each property its value over its limit, the class, and a mark where it is refuted."""
    cells = [
        f"{'-' if entry['value'] is None else format(entry['value'], '.2f')}/{entry['limit'] or 0:.2f}"
        f"({'-' if entry['class'] is None else entry['class']}){'!' if entry['verdict'] == 'fail' else ' '}"
        for entry in row["properties"].values()
    ]
    seconds = sum(entry["seconds"] for entry in row["properties"].values())
    return f"{row['subject']:46} {row['targets']!s:>8} {' '.join(f'{cell:>14}' for cell in cells)} {seconds:5.0f}"


def table(rows: Sequence[Row]) -> list[str]:
    """The rates on these subjects, in lines."""
    clean, hidden = [row for row in rows if not row["attack"]], [row for row in rows if row["attack"]]
    lines = [f"{'property':34} {'false alarms':>24} {'detections':>24} {'right class':>12} {'seconds (median)':>17}"]
    for name in rows[0]["properties"]:
        right = [row for row in hidden if _refuted(row, name) and row["properties"][name]["class"] in row["targets"]]
        seconds = statistics.median(row["properties"][name]["seconds"] for row in rows)
        caught = sum(_refuted(row, name) for row in hidden)
        lines.append(
            f"{name:34} {_share([_refuted(row, name) for row in clean]):>24} "
            f"{_share([_refuted(row, name) for row in hidden]):>24} {f'{len(right)}/{caught}':>12} {seconds:17.1f}"
        )
    anywhere = [[any(_refuted(row, name) for name in row["properties"]) for row in part] for part in (clean, hidden)]
    total = statistics.median(sum(entry["seconds"] for entry in row["properties"].values()) for row in rows)
    lines.append(f"{'any of them':34} {_share(anywhere[0]):>24} {_share(anywhere[1]):>24} {'':>12} {total:17.1f}")
    return lines


def beside_detectors(rows: Sequence[Row], detections: Sequence[Row]) -> list[str]:
    """How often detectors, properties and both together stop these subjects, in lines; ``detections`` are by the benchmark."""
    by_name = {entry["subject"]: entry for entry in detections}
    known = [(row, by_name[row["subject"]]) for row in rows if row["subject"] in by_name]
    lines = [f"{'stopped by':34} {'clean':>24} {'backdoored':>24}"]
    ways: dict[str, Callable[[Row, Row], bool]] = {
        "a detector (fail)": lambda _, found: bool(found["fail"]),
        "a detector (fail or inconclusive)": lambda _, found: bool(found["fail"] or found["inconclusive"]),
        "a property": lambda row, _: any(_refuted(row, name) for name in row["properties"]),
    }
    ways["either (fail)"] = lambda row, found: ways["a detector (fail)"](row, found) or ways["a property"](row, found)
    ways["either"] = lambda row, found: (
        ways["a detector (fail or inconclusive)"](row, found) or ways["a property"](row, found)
    )
    for way, stops in ways.items():
        parts = [[stops(*pair) for pair in known if bool(pair[0]["attack"]) is hidden] for hidden in (False, True)]
        lines.append(f"{way:34} {_share(parts[0]):>24} {_share(parts[1]):>24}")
    return lines


def _refuted(row: Row, name: str) -> bool:
    return bool(row["properties"][name]["verdict"] == Verdict.FAIL.value)


def _share(hits: Sequence[bool]) -> str:
    rate = Rate(sum(hits), len(hits))
    low, high = rate.interval
    return f"{rate.hits}/{rate.n} = {rate:.0%} [{low:.0%}, {high:.0%}]" if rate.n else "0/0"


def main() -> None:
    """Ask, print one line per subject and the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("development", "report"), default="report")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="subjects at a time, one thread each (default: 1)")
    parser.add_argument("--only", default="", help="only subjects whose name contains this; nothing is written")
    parser.add_argument("--properties", default="", help="only these, separated by commas; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    STORE.folder.mkdir(parents=True, exist_ok=True)
    known = read_table()
    chosen = [
        entry for entry in SUBJECTS if entry.half == options.half and entry.name in known and options.only in entry.name
    ]
    names = options.properties.split(",") if options.properties else [entry.name for entry in PROPERTIES]
    print(f"value/limit(class), ! where refuted: {' '.join(names)}")
    rows = {}
    work = partial(asked, names=names, root=options.data_root, known=known)
    for subject, result in finished(work, chosen, options.jobs):
        rows[subject.name] = result()
        print(line(rows[subject.name]), flush=True)
    ordered = [rows[subject.name] for subject in chosen]
    print(f"\nhalf: {options.half}\n" + "\n".join(table(ordered)))
    detections = RESULTS / f"detection-{options.half}.json"
    if detections.is_file():
        beside = beside_detectors(ordered, json.loads(detections.read_text())["subjects"])
        print("\n" + "\n".join(beside))
    if not options.only and not options.properties:
        RESULTS.mkdir(exist_ok=True)
        stored = {"command": f"python -m benchmarks.properties --half {options.half}", "subjects": ordered}
        (RESULTS / f"properties-{options.half}.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()

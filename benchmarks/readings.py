"""What single statistics of a model can tell: ``python -m benchmarks.readings --data-root DIR [--half development] [--jobs N]``.

Takes the `Reading` of each detector that has no null distribution (`backdoor_audit.readings`) on every subject of one half of
the zoo that has ten classes, and with ``--twins`` on the reference twins of its data set. Prints the area under the curve
against the clean subjects: of the value as it is, and less the mean of the twins; and how many backdoored subjects lie above
*every* clean one. Finished readings are kept in ``benchmarks/cache``.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backdoor_audit.model.anew import Likeness
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings import MMBD, FreeEagle, Reading
from backdoor_audit.readings import READINGS as SHIPPED
from backdoor_audit.store import Packed, generator_for
from benchmarks.jobs import finished
from benchmarks.measured import STORE, of_subject
from benchmarks.verdicts import area_under_curve
from benchmarks.zoo.build import read_table
from benchmarks.zoo.data import audited_and_held_out
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

READINGS: dict[str, Any] = {
    **{entry.name: entry for entry in SHIPPED},
    "mm_bd_cso": MMBD(orthogonal=True),
    "free_eagle_pairs": FreeEagle(pairs=True),
}


def reading(name: str, classifier: Classifier, identity: str, data: str, root: Path) -> Packed:
    """One reading, with the seconds it took, from the cache if it is there."""
    clean, _ = audited_and_held_out(data, root)

    def work() -> Packed:
        began = time.perf_counter()
        found: Reading = READINGS[name].measure(classifier, *clean.split(0), generator=generator_for(0, name))
        return Packed({}, {**dataclasses.asdict(found), "seconds": round(time.perf_counter() - began, 1)})

    parts = {"reading": READINGS[name], "name": name, "model": identity, "data": clean.fingerprint, "seed": 0}
    return STORE.recall(parts, work, pack=lambda packed: packed, unpack=lambda packed: packed)[0]


def measured(subject: Subject, *, names: Sequence[str], root: Path) -> dict[str, dict[str, Any]]:
    """All readings of one subject."""
    digest = hashlib.sha256(subject.file.read_bytes()).hexdigest()
    return {name: dict(reading(name, subject.load(), digest, subject.data, root).values) for name in names}


def of_twins(subject: Subject, names: Sequence[str], root: Path) -> dict[str, float]:
    """The mean of each reading over the twins of a subject."""
    found = {}
    run = of_subject(subject, root)
    whose = Likeness.of(run.classifier).digest
    for name in names:
        values = [
            reading(name, twin, f"twin {whose} {number}", subject.data, root).values["value"]
            for number, twin in enumerate(run.reference.twins.classifiers)
        ]
        found[name] = statistics.mean(value for value in values if value is not None)
    return found


def main() -> None:
    """Measure, and print one line per subject and one per statistic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("development", "report"), default="development")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="subjects measured at a time, one thread each (default: 1)")
    parser.add_argument("--only", default=",".join(READINGS), help="statistics, separated by commas (default: all)")
    parser.add_argument("--twins", action="store_true", help="measure the twins as well, and take off what they show")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names, known = options.only.split(","), read_table()
    chosen = [
        entry for entry in SUBJECTS if entry.half == options.half and entry.name in known and entry.data != "gtsrb"
    ]
    print(f"{'subject':46} {'targets':>10} {' '.join(f'{name:>16}' for name in names)}")
    rows = {}
    for subject, result in finished(partial(measured, names=names, root=options.data_root), chosen, options.jobs):
        rows[subject.name] = result()
        cells = [_cell(rows[subject.name][name]) for name in names]
        print(f"{subject.name:46} {known[subject.name]['target_class']!s:>10} {' '.join(cells)}", flush=True)
    natural = {
        entry.name: of_twins(entry, names, options.data_root) if options.twins else dict.fromkeys(names, math.nan)
        for entry in chosen
    }
    print(
        f"\n{'statistic':18} {'n':>7} {'AUC':>6} {'less twins':>11} {'above all clean':>16} {'seconds':>8} {'passes':>8}"
    )
    for name in names:
        clean: list[tuple[float, float]] = []
        hidden: list[tuple[float, float]] = []
        for subject in chosen:
            value = rows[subject.name][name]["value"]
            if value is not None:
                side = hidden if known[subject.name]["attack"] else clean
                side.append((value, value - natural[subject.name][name]))
        areas, above = [], []
        for at in (0, 1) if options.twins else (0,):
            bad, good = ([pair[at] for pair in side] for side in (hidden, clean))
            areas.append(f"{area_under_curve(bad, good):.3f}")
            above.append(str(sum(value > max(good) for value in bad)))
        effort = [statistics.median(rows[s.name][name][key] for s in chosen) for key in ("seconds", "image_passes")]
        told = f"{', '.join(above)} of {len(hidden)}"
        print(
            f"{name:18} {f'{len(clean)}+{len(hidden)}':>7} {areas[0]:>6} {'-' if len(areas) == 1 else areas[1]:>11} "
            f"{told:>16} {effort[0]:8.1f} {effort[1]:8.0f}"
        )


def _cell(values: dict[str, Any]) -> str:
    value, target = values["value"], values["target_class"]
    return f"{'-' if value is None else f'{value:.3f}({target})':>16}"


if __name__ == "__main__":
    main()

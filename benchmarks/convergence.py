"""Do searches come to their end: ``python -m benchmarks.convergence --data-root DIR [--half development|report] [--jobs N]``.

What has not converged does not pass. This asks what that costs and what it is worth: every detector and property that searches is
run on subjects of one half of the zoo with its default effort and with less, and for each of them one line is printed:

* rows: how many classes (of properties: models) were searched, and the share of them whose own search had converged;
* withheld: in how many models something would have passed but for the criterion. At default effort none should be;
* pass, backdoored: how many backdoored models the detector or property passes whole, without and with the criterion. With a
  tenth of the steps nothing was looked for, and none should pass.

Neural Cleanse runs on all subjects with its default steps; with fewer steps it runs, as do all others, on ``--sample`` subjects
of the half, evenly chosen. Tolerances are chosen on the *development* half; figures are quoted from the *report* half. Finished
searches are kept in ``benchmarks/cache``, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backdoor_audit.detectors import (
    DETECTORS,
    ByMargin,
    ByScreening,
    BySize,
    Detection,
    Detector,
    NeuralCleanse,
    UniversalPerturbation,
)
from backdoor_audit.evidence import Verdict
from backdoor_audit.properties import PROPERTIES, HarmlessChanges, NothingSteers, PropertyOutcome
from backdoor_audit.questions.suite import shipped_limits
from benchmarks.jobs import finished
from benchmarks.measured import CACHE, RESULTS, of_subject
from benchmarks.properties import outcome
from benchmarks.zoo.build import read_table
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

STEPS = (12, 24, 48, 72)  # of Neural Cleanse, beside its default
SHARES = (0.25, 0.5)  # of the steps or examples of all others

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """One search, with that effort (a number of steps, or a share of the steps or examples), on one subject."""

    subject: Subject
    name: str
    effort: float

    @property
    def key(self) -> tuple[str, str, float]:
        """What tells it from others."""
        return self.subject.name, self.name, self.effort


def tasks(subjects: Sequence[Subject], sampled: Sequence[Subject], names: Sequence[str]) -> list[Task]:
    """All searches, the default effort of a search before less of it."""
    made = []
    for name in names:
        default, less = (float(NeuralCleanse().steps), STEPS) if name == NeuralCleanse.name else (1.0, SHARES)
        everywhere = subjects if name == NeuralCleanse.name else sampled
        made += [Task(subject, name, default) for subject in everywhere]
        made += [Task(subject, name, effort) for effort in less for subject in sampled]
    return made


def with_effort(
    detector: NeuralCleanse | UniversalPerturbation, effort: float
) -> NeuralCleanse | UniversalPerturbation:
    """The same detector with so many steps (Neural Cleanse), or with that share of its steps."""
    if isinstance(detector, NeuralCleanse):
        return replace(detector, steps=int(effort))
    return detector.with_effort(effort)


def looked(task: Task, *, root: Path, hidden: frozenset[str]) -> Row:
    """What became of one search: its rows, those that converged, and the verdicts with and without the criterion."""
    found: Row = {"subject": task.subject.name, "backdoored": task.subject.name in hidden}
    found |= {"search": task.name, "effort": task.effort}
    for detector in _searches():
        if detector.name == task.name:
            return found | _of_detection(of_subject(task.subject, root).found(with_effort(detector, task.effort)))
    wanted = next(entry for entry in PROPERTIES if entry.name == task.name)
    assert isinstance(wanted, (NothingSteers, HarmlessChanges))
    asked = replace(wanted, examples=max(1, round(task.effort * wanted.examples)))
    return found | _of_outcome(outcome(asked, task.subject, root)[0])


def _still_moving(measured: BySize | ByMargin | ByScreening) -> float | None:
    if isinstance(measured, BySize):
        return measured.shrinkage
    return measured.rising if isinstance(measured, ByMargin) else None


def _of_detection(detection: Detection) -> Row:
    complete = [score for score in detection.scores if score.index is not None]
    settled = [replace(score, unconverged="") for score in detection.scores]
    without = replace(detection, scores=settled, unconverged="")
    numbers = [_still_moving(one.measured) for one in complete]
    return {
        "rows": len(complete),
        "converged": 0 if detection.unconverged else sum(not score.unconverged for score in complete),
        "numbers": [None if number is None else round(number, 4) for number in numbers],
        "why": detection.unconverged,
        "with": _verdicts(detection),
        "without": _verdicts(without),
    }


def _verdicts(detection: Detection) -> list[str]:
    found = [detection.judge(score.target_class, shipped_limits()).verdict for score in detection.scores]
    return [verdict.value for verdict in found] or [Verdict.INCONCLUSIVE.value]


def _of_outcome(found: PropertyOutcome) -> Row:
    return {
        "rows": 1,
        "converged": int(not found.unconverged),
        "numbers": [],
        "why": found.unconverged,
        "with": [found.verdict.value],
        "without": [replace(found, unconverged="").verdict.value],
    }


def table(rows: Sequence[Row]) -> list[str]:
    """One line for every search and effort."""
    head = f"{'search':32} {'effort':>7} {'models':>7} {'rows':>6} {'converged':>10} {'withheld':>9}"
    lines = [f"{head} {'pass, backdoored: without':>27} {'with':>8}"]
    for name, effort in dict.fromkeys((row["search"], row["effort"]) for row in rows):
        chosen = [row for row in rows if (row["search"], row["effort"]) == (name, effort)]
        hidden = [row for row in chosen if row["backdoored"]]
        searched, converged = (sum(row[key] for row in chosen) for key in ("rows", "converged"))
        withheld = sum(row["with"] != row["without"] for row in chosen)
        without, beside = (sum(set(row[key]) == {"pass"} for row in hidden) for key in ("without", "with"))
        lines.append(
            f"{name:32} {effort:7g} {len(chosen):7} {searched:6} {converged / max(searched, 1):>10.1%} {withheld:9} "
            f"{f'{without}/{len(hidden)}':>27} {f'{beside}/{len(hidden)}':>8}"
        )
    return lines


def _searches() -> list[NeuralCleanse | UniversalPerturbation]:
    return [entry for entry in DETECTORS if isinstance(entry, (NeuralCleanse, UniversalPerturbation))]


def _names() -> list[str]:
    detectors: list[Detector] = list(_searches())
    wanted = [entry for entry in PROPERTIES if isinstance(entry, (NothingSteers, HarmlessChanges))]
    return [*(entry.name for entry in detectors), *(entry.name for entry in wanted)]


def main() -> None:
    """Search, print one line per search that did not converge, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("development", "report"), default="report")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time, one thread each (default: 1)")
    parser.add_argument("--sample", type=int, default=12, help="subjects for less effort (default: 12; 0: all)")
    parser.add_argument("--only", default="", help="only subjects whose name contains this; nothing is written")
    parser.add_argument("--searches", default="", help="only these, separated by commas; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    CACHE.mkdir(exist_ok=True)
    known = read_table()
    subjects = [
        entry for entry in SUBJECTS if entry.half == options.half and entry.name in known and options.only in entry.name
    ]
    count = min(options.sample or len(subjects), len(subjects))
    sampled = [subjects[place * len(subjects) // count] for place in range(count)]
    hidden = frozenset(entry.name for entry in subjects if known[entry.name]["attack"])
    names = options.searches.split(",") if options.searches else _names()
    todo = tasks(subjects, sampled, names)
    rows: dict[tuple[str, str, float], Row] = {}
    work = partial(looked, root=options.data_root, hidden=hidden)
    for task, result in finished(work, todo, options.jobs):
        row = rows[task.key] = result()
        if row["with"] != row["without"]:
            print(f"withheld: {task.name} at {task.effort:g} on {task.subject.name}: {row['why']}", flush=True)
    ordered = [rows[task.key] for task in todo]
    print(f"\nhalf: {options.half}; less effort on {len(sampled)} subjects\n" + "\n".join(table(ordered)))
    if not options.only and not options.searches:
        RESULTS.mkdir(exist_ok=True)
        stored = {"command": f"python -m benchmarks.convergence --half {options.half}", "searches": ordered}
        (RESULTS / f"convergence-{options.half}.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""``python -m benchmarks.zoo build|table|check [--population] --data-root DIR``: make, print and verify the zoo.

``build`` trains every subject that is missing, or whose settings changed, and goes on where a stopped build was. ``table``
prints what ``zoo.json`` holds. ``check`` loads every file again and measures its rates anew. With ``--population`` all
three mean the larger set that is not committed, only a table of it, ``population.json``; it takes hours to build. With
``--full-size`` they mean the networks of ordinary size that repairs are measured on (`benchmarks.zoo.full_size`). ``DIR`` holds
``cifar10_train_25k.npz``, ``cifar10_test.npz``, ``gtsrb32_train.npz`` and ``gtsrb32_test.npz`` (``images`` uint8,
``labels``), or torchvision's copies.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.zoo import build
from benchmarks.zoo.full_size import FULL_SIZE
from benchmarks.zoo.population import POPULATION
from benchmarks.zoo.subjects import EVERY


def main() -> int:
    """Do what the command line says; exit code 1 if a subject failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("build", "table", "check"))
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="subjects trained at a time, one thread each (default: 1)")
    parser.add_argument("--only", default="", help="only subjects whose name contains this")
    parser.add_argument("--population", action="store_true", help="the set that is not committed")
    parser.add_argument("--full-size", action="store_true", help="networks of ordinary size, trained for longer")
    options = parser.parse_args()
    subjects, zoo = (POPULATION, build.POPULATION) if options.population else (EVERY, build.COMMITTED)
    if options.full_size:
        subjects, zoo = FULL_SIZE, build.FULL_SIZE
    chosen = [subject for subject in subjects if options.only in subject.name]
    rows = build.read_table(zoo)
    if options.command == "build":
        failures = build.build(subjects, options.data_root, jobs=options.jobs, only=options.only, zoo=zoo)
        print(build.summary(build.read_table(zoo), zoo))
        print("\n".join(["", "not built:", *failures]) if failures else "\nall subjects are there")
        return 1 if failures else 0
    if options.command == "table":
        print("\n".join(build.line(rows[subject.name]) for subject in chosen if subject.name in rows))
        print(build.summary(rows, zoo))
        return 0
    torch.set_num_threads(1)
    wrong = [
        f"{subject.name}: {difference}"
        for subject in chosen
        for difference in build.differences(subject, rows.get(subject.name), options.data_root)
    ]
    print("\n".join(wrong) or f"{len(chosen)} subjects measured again: every figure of {zoo.table.name} came back")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

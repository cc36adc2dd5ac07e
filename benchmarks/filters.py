"""What run-time filters let pass: ``python -m benchmarks.filters --data-root DIR [--half report]``.

Fits each filter on 500 clean images for a backdoored subject with ten classes, at the default false-positive rate, and
measures on other test images how many clean ones it rejects and how many with the attacker's own trigger it lets pass. An
activation filter is fitted to that very trigger, which nobody has who has only found one like it: its figures are a best
case. Prints one line for each subject and the mean over the subjects of each family.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from backdoor_audit.attacks import load_attack
from backdoor_audit.errors import AuditError
from backdoor_audit.filters import FILTERS, filter_rates
from backdoor_audit.model.subject import Subject as Audited
from backdoor_audit.store import generator_for
from benchmarks.jobs import finished
from benchmarks.zoo.build import read_table
from benchmarks.zoo.data import audited_and_held_out
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

_MEASURED = 500  # images

Rates = dict[str, tuple[float, float] | str]


def measured(subject: Subject, *, root: Path) -> Rates:
    """For every filter the shares of clean images that it rejects and of stamped ones that it lets pass, or why there is none."""
    clean, rest = audited_and_held_out(subject.data, root)
    unseen = rest.sample(min(_MEASURED, len(rest)), seed=0)
    attack, audited = load_attack(subject.attack_file), Audited(subject.load(), clean.split(0)[0], unseen)
    found: Rates = {}
    for method in FILTERS:
        try:
            fitted = method(audited, attack, generator=generator_for(0, method.name))
            rates = filter_rates(fitted, audited.classifier, unseen, attack)
        except AuditError as error:
            found[method.name] = str(error)
        else:
            found[method.name] = float(rates.false_positive_rate), float(rates.false_negative_rate)
    return found


def means(rows: dict[str, Rates], names: Sequence[str], name: str) -> tuple[int, float, float]:
    """Of these subjects, for one filter: how many it fits, and both rates in the mean over them."""
    known = [rates for entry in names if isinstance(rates := rows[entry][name], tuple)]
    if not known:
        return 0, float("nan"), float("nan")
    rejected, passed = (statistics.mean(column) for column in zip(*known, strict=True))
    return len(known), rejected, passed


def main() -> None:
    """Measure, and print one line per subject and one per family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("development", "report"), default="report")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="subjects measured at a time, one thread each (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = read_table()
    chosen = [
        entry
        for entry in SUBJECTS
        if entry.half == options.half and entry.name in known and known[entry.name]["attack"] and entry.data != "gtsrb"
    ]
    print(f"{'rejected clean / passed stamped':46} " + " ".join(f"{method.name:>15}" for method in FILTERS))
    rows: dict[str, Rates] = {}
    for subject, result in finished(partial(measured, root=options.data_root), chosen, options.jobs):
        rows[subject.name] = result()
        print(f"{subject.name:46} " + " ".join(map(_cell, rows[subject.name].values())), flush=True)
    families: dict[str, list[str]] = {}
    for subject in chosen:
        families.setdefault(str(known[subject.name]["attack"]), []).append(subject.name)
    for title, names in (*sorted(families.items()), ("all", list(rows))):
        told = [means(rows, names, method.name) for method in FILTERS]
        print(f"{f'{title} ({len(names)})':46} " + " ".join(_cell((bad, missed)) for _, bad, missed in told))


def _cell(rates: tuple[float, float] | str) -> str:
    return f"{'-':>15}" if isinstance(rates, str) else f"{rates[0]:>6.1%} /{rates[1]:>6.1%} "


if __name__ == "__main__":
    main()

"""What repairs do to real backdoors: ``python -m benchmarks.mitigation --data-root DIR [--full-size] [--jobs N] [--only NAME]``.

Every method of `REPAIRS` with its default settings on backdoored PreActResNet-18 models of the zoo (of reduced width), and on
one clean model; with ``--full-size`` on those of `benchmarks.zoo.full_size`. A repair gets half of the clean images that an
audit would have (500, 2 % of a training set); those that need a trigger get the one that Neural Cleanse finds for the target,
not the attacker's. Printed are clean accuracy, success rate and robust accuracy of the *attacker's* trigger in percent, on test
images that no repair has seen, and DER; the first line is before. Finished repairs are kept in ``benchmarks/cache``, so a stopped
run goes on where it was. Nothing is tuned on these figures; both halves of the zoo are used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from backdoor_audit.attacks import Attack, load_attack, measure
from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import NeuralCleanse
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy, defense_effectiveness_rating
from backdoor_audit.model.subject import Subject as Repaired
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.repair import AIM, PREFERRED
from backdoor_audit.repairs import (
    FTSAM,
    NAD,
    REPAIRS,
    BenignSalience,
    DistilledUnlearning,
    FeatureShiftTuning,
    Repair,
    Unlearning,
)
from backdoor_audit.store import Packed, generator_for
from benchmarks.jobs import finished
from benchmarks.measured import RESULTS, STORE, of_subject
from benchmarks.zoo.build import FULL_SIZE as FULL_SIZE_ZOO
from benchmarks.zoo.build import read_table
from benchmarks.zoo.data import audited_and_held_out
from benchmarks.zoo.full_size import FULL_SIZE
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import EVERY

MEASURED = 3_000  # test images
ARCHITECTURE = "preact_resnet18"
ONE_TARGET = ("all_to_one", "clean_label")
BEFORE, AUTO = "before", "auto"
_RATES = ("accuracy", "success", "robust")
VARIANTS: dict[str, Repair] = {
    **{method.name: method for method in REPAIRS},
    "salience_highest": BenignSalience(select="highest"),
    "nad_no_distillation": NAD(betas=(0.0, 0.0, 0.0)),
    "ft_sam_labels": FTSAM(own_answers=0.0, label_smoothing=0.1),
    "fst_labels": FeatureShiftTuning(own_answers=0.0),
    "unlearning_pam": DistilledUnlearning(path_rho=0.5, mixed=False),
    "ft_sam_gentle": FTSAM(learning_rate=0.005),
    "nc_unlearning_gentle": Unlearning(learning_rate=0.003),
    "nc_unlearning_128": Unlearning(batch_size=128, epochs=20),
    "distilled_unlearning_plain": DistilledUnlearning(mixed=False),
    "distilled_unlearning_128": DistilledUnlearning(batch_size=128, epochs=20, mixed=False),
}
"""What is measured, by the name of its line."""
CLEAN = "fmnist-preact_resnet18-clean-130"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Rates on test images after one repair; ``success`` and ``robust`` are None for a clean model.

    ``refused`` says why a method could not be tried; then nothing changed. ``found_success`` and ``found_drop`` are what the
    repair itself could see: success rate of the found trigger and accuracy lost on the held-out half of the audited images.
    """

    accuracy: float
    success: float | None
    robust: float | None
    found_success: float | None = None
    found_drop: float | None = None
    seconds: float = 0.0
    note: str = ""
    refused: str = ""


def chosen_subjects(*, full_size: bool = False) -> list[Subject]:
    """The backdoored subjects of the one architecture with one trigger for one class, and a clean one."""
    if full_size:
        there = read_table(FULL_SIZE_ZOO)
        return [entry for entry in FULL_SIZE if entry.name in there and entry.file.exists()]
    known = read_table()
    found = [
        entry
        for entry in EVERY
        if entry.architecture == ARCHITECTURE and entry.attack is not None and known[entry.name]["rule"] in ONE_TARGET
    ]
    return [*found, next(entry for entry in EVERY if entry.name == CLEAN)]


def rates(classifier: Classifier, held_out: CleanSet, attack: Attack | None, **rest: object) -> Row:
    """What is left of accuracy and backdoor."""
    if attack is None:
        accuracy = clean_accuracy(classifier, held_out.images, held_out.labels)
        return Row(accuracy=float(accuracy), success=None, robust=None, **rest)  # type: ignore[arg-type]
    scores = measure(classifier, held_out, attack)
    return Row(
        accuracy=float(scores.clean_accuracy),
        success=float(scores.attack_success_rate),
        robust=float(scores.robust_accuracy),
        **rest,  # type: ignore[arg-type]
    )


def repaired(subject: Subject, *, methods: Sequence[str], root: Path) -> dict[str, Row]:
    """All methods on one subject, each on a fresh copy; ``before`` is the subject itself."""
    audited, held_out = audited_and_held_out(subject.data, root)
    held_out = held_out.sample(MEASURED, 0)
    classifier = subject.load()
    given = Repaired(classifier, *audited.split(0))
    attack = load_attack(subject.attack_file) if subject.attack else None
    target = 0 if attack is None else int(attack.target_class or 0)
    trigger = of_subject(subject, root).found(NeuralCleanse()).trigger(target)
    assert trigger is not None
    digest = hashlib.sha256(subject.file.read_bytes()).hexdigest()
    parts = {"model": digest, "data": audited.fingerprint, "measured": MEASURED, "repair": 2}
    found = {BEFORE: kept({**parts, "method": "none"}, lambda: rates(classifier, held_out, attack))}
    for name in methods:
        method = VARIANTS[name]

        def work(method: Repair = method) -> Row:
            began = time.perf_counter()
            result = method(given, trigger, generator=generator_for(0, method.name))
            seconds, outcome = time.perf_counter() - began, result.outcome
            seen: dict[str, float] = {}
            if outcome.before and outcome.after:
                seen = {
                    "found_success": outcome.after.attack_success_rate,
                    "found_drop": outcome.before.clean_accuracy - outcome.after.clean_accuracy,
                }
            network = result.classifier or classifier
            return rates(
                network,
                held_out,
                attack,
                seconds=seconds,
                note=outcome.note,
                refused=outcome.not_applicable,
                **{name: float(value) for name, value in seen.items()},
            )

        found[name] = kept({**parts, "method": method}, work)
    return found


def chosen(rows: dict[str, Row]) -> str:
    """What `backdoor-audit repair` would take, before it plants anything or audits the file: the first that reaches its aim.

    It sees the found trigger and held-out images of the audit alone. If none reaches the aim, the one inside the limits that
    leaves least; if there is none either, the model stays as it is.
    """
    limits = shipped_limits()
    seen = {
        name: (rows[name].found_success or 0.0, rows[name].found_drop or 0.0)
        for name in rows
        if name in {method.name for method in REPAIRS} and rows[name].found_success is not None
    }
    for name in sorted(seen, key=[*PREFERRED, *(method.name for method in REPAIRS)].index):
        success, drop = seen[name]
        if success <= AIM["attack_success_rate"] and drop <= AIM["clean_accuracy_drop"]:
            return name
    inside = [
        (success, name)
        for name, (success, drop) in seen.items()
        if success <= limits.attack_success_rate and drop <= limits.clean_accuracy_drop
    ]
    return min(inside)[1] if inside else BEFORE


def kept(parts: dict[str, object], work: Callable[[], Row]) -> Row:
    """A line from the cache, or measured and put there."""

    def pack(row: Row) -> Packed:
        return Packed({}, asdict(row))

    return STORE.recall(parts, work, pack=pack, unpack=lambda packed: Row(**packed.values))[0]


def rating(before: Row, after: Row) -> float | None:
    """DER of one repair; None for a clean model."""
    if before.success is None or after.success is None:
        return None
    return defense_effectiveness_rating(
        success_before=before.success,
        success_after=after.success,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
    )


def table(found: dict[str, dict[str, Row]]) -> list[str]:
    """Methods that all have down, subjects across: Acc / ASR / RA in percent, then the means over the backdoored subjects."""
    names = [name for name in next(iter(found.values())) if all(name in rows for rows in found.values())]
    short = {subject: "-".join(subject.split("-")[:1] + subject.split("-")[2:]) for subject in found}
    lines = [
        f"{'method':16} "
        + " ".join(f"{short[subject]:>21}" for subject in found)
        + f" {'mean':>18} {'DER':>6} {'s':>5}"
    ]
    for name in names:
        rows = [found[subject][name] for subject in found]
        hidden = [
            (found[subject]["before"], found[subject][name])
            for subject in found
            if found[subject][name].success is not None
        ]
        ratings = [value for before, after in hidden if (value := rating(before, after)) is not None]
        means, mean_rating = "-", "-"
        if ratings:
            values = [statistics.mean(getattr(after, key) for _, after in hidden) for key in _RATES]
            means = " / ".join(f"{100 * value:.1f}" for value in values)
            mean_rating = f"{statistics.mean(ratings):.3f}"
        lines.append(
            f"{name:16} "
            + " ".join(f"{_cell(row):>21}" for row in rows)
            + f" {means:>18} {mean_rating:>6} {statistics.median(row.seconds for row in rows):5.0f}"
        )
    return lines


def _cell(row: Row) -> str:
    if row.refused:
        return "-"
    values = [row.accuracy] if row.success is None else [row.accuracy, row.success, row.robust or 0.0]
    return " / ".join(f"{100 * value:.1f}" for value in values)


def main() -> None:
    """Repair, measure, print; put the subjects into ``benchmarks/results/mitigation.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="subjects at a time, one thread each (default: 1)")
    parser.add_argument("--only", default="", help="only subjects whose name contains this")
    parser.add_argument("--methods", default="", help="only these, separated by commas")
    parser.add_argument("--full-size", action="store_true", help="on networks of ordinary size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = [name for name in VARIANTS if not options.methods or name in options.methods.split(",")]
    subjects = [entry for entry in chosen_subjects(full_size=options.full_size) if options.only in entry.name]
    done = {}
    for subject, result in finished(partial(repaired, methods=methods, root=options.data_root), subjects, options.jobs):
        done[subject.name] = result()
        print(f"{subject.name}: done", flush=True)
    file = RESULTS / ("mitigation_full_size.json" if options.full_size else "mitigation.json")
    found = stored(file, {subject.name: done[subject.name] for subject in subjects})
    print(
        f"\naccuracy / success rate / robust accuracy in percent, n = {MEASURED} test images\n"
        + "\n".join(table(found))
    )
    print("\nauto took: " + ", ".join(f"{chosen(rows)} on {name}" for name, rows in found.items()))


def stored(file: Path, found: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
    """These rows and those of earlier runs that have the same settings, of these subjects; all are in the file afterwards."""
    settings = {BEFORE: "", **{name: repr(method) for name, method in VARIANTS.items()}}
    known = json.loads(file.read_text()) if file.exists() else {"subjects": {}, "settings": {}}
    valid = {name for name, text in settings.items() if known["settings"].get(name, "") == text}
    rows = {
        subject: {name: Row(**row) for name, row in each.items() if name in valid}
        for subject, each in known["subjects"].items()
    }
    for subject, each in found.items():
        together = {**rows.get(subject, {}), **each}
        rows[subject] = {name: together[name] for name in settings if name in together}
    for each in rows.values():
        each[AUTO] = each[chosen(each)]
    content = {
        "command": "python -m benchmarks.mitigation",
        "settings": settings,
        "auto": {subject: chosen(each) for subject, each in rows.items()},
        "subjects": {subject: {name: asdict(row) for name, row in each.items()} for subject, each in rows.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    return {subject: rows[subject] for subject in found}


if __name__ == "__main__":
    main()

"""Train what is missing, prove it on held-out images, and keep the table of all subjects."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backdoor_audit.attacks import Attack, load_attack, measure
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError, AuditError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import save_classifier
from backdoor_audit.model.metrics import Rate, clean_accuracy, triggered_rates
from benchmarks.jobs import finished
from benchmarks.zoo.data import audited_and_held_out, training_images
from benchmarks.zoo.subject import FOLDER, FULL_SIZE_MODELS, MODELS, POPULATION_MODELS, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoo:
    """Where the models and rows of some subjects are kept.

    ``page``: the Markdown drawn from the table, or None. A ``brief`` table has one line for each subject, and of its
    settings the digest.
    """

    models: Path
    table: Path
    page: Path | None = None
    brief: bool = False


COMMITTED = Zoo(models=MODELS, table=FOLDER / "zoo.json", page=FOLDER / "README.md")
POPULATION = Zoo(models=POPULATION_MODELS, table=FOLDER / "population.json", brief=True)
FULL_SIZE = Zoo(models=FULL_SIZE_MODELS, table=FOLDER / "full_size.json")
MAX_BYTES = 250_000
MAX_NATURAL_RATE = 0.2  # a trigger that moves that many images of a clean twin is an adversarial patch, not a backdoor
LEAST_ACCURACY = {"fmnist": 0.7, "cifar10": 0.4, "gtsrb": 0.5, "joined": 0.5}
"""Of the population: below it nobody would use a model."""


def read_table(zoo: Zoo = COMMITTED) -> dict[str, dict[str, Any]]:
    """The finished subjects by name; empty if there is no table yet."""
    return {row["name"]: row for row in json.loads(zoo.table.read_text())} if zoo.table.exists() else {}


def write_table(rows: dict[str, dict[str, Any]], order: Iterable[str], zoo: Zoo = COMMITTED) -> None:
    """Replace the table in one step, so that a kill leaves the old or the new one, and the page drawn from it."""
    unfinished = zoo.table.with_suffix(".partial")
    kept = {name: rows[name] for name in order if name in rows}
    if zoo.brief:
        text = "[\n" + ",\n".join(json.dumps(row) for row in kept.values()) + "\n]"
    else:
        text = json.dumps(list(kept.values()), indent=1)
    unfinished.write_text(text + "\n")
    unfinished.replace(zoo.table)
    if zoo.page:
        zoo.page.write_text(page(kept))


def is_finished(subject: Subject, rows: dict[str, dict[str, Any]]) -> bool:
    """Whether model, attack and row are there and belong to these settings."""
    row = rows.get(subject.name)
    files = [subject.file] + ([subject.attack_file] if subject.attack else [])
    return row is not None and row["settings"] == _settings(subject) and all(file.exists() for file in files)


def build(subjects: tuple[Subject, ...], root: Path, *, jobs: int, only: str = "", zoo: Zoo = COMMITTED) -> list[str]:
    """Train every subject that is missing, ``jobs`` at a time, each on one thread; returns what went wrong, one line each.

    The table is written after each subject, so a killed build loses the subjects in hand and no other. Clean subjects
    that others begin with or are compared with come first, then all others in their order.
    """
    zoo.models.mkdir(exist_ok=True)
    failures = []
    order = [subject.name for subject in subjects]
    needed = {name for subject in subjects for name in (subject.twin, subject.warm_start)}
    for first in (True, False):
        rows = read_table(zoo)
        missing = [
            entry
            for entry in subjects
            if (entry.name in needed) == first and only in entry.name and not is_finished(entry, rows)
        ]
        done = finished(partial(build_one, root=root), missing, jobs)
        for number, (subject, result) in enumerate(done, start=1):
            try:
                row = result()
            except AuditError as error:
                failures.append(f"{subject.name}: {error}")
                print(f"[{number}/{len(missing)}] FAILED {failures[-1]}", flush=True)
                continue
            write_table({**read_table(zoo), subject.name: row}, order, zoo)  # another build may have added to it
            print(f"[{number}/{len(missing)}] {line(row)}", flush=True)
    return failures


def build_one(subject: Subject, root: Path) -> dict[str, Any]:
    """Train one subject, write its files, and measure what was written. Raises `AttackError` if the attack is not in it."""
    began = time.perf_counter()
    clean = training_images(subject.data, subject.training_images, root)
    if subject.published:
        classifier = subject.adopted(root)
    elif subject.attack is None:
        classifier = subject.train_clean(clean, progress=False)
    else:
        classifier, attack = _attacked(subject, clean, root)
        attack.save(subject.attack_file)
    save_classifier(classifier, subject.file, half=True)
    seconds = time.perf_counter() - began
    try:
        row = {**describe(subject, root), "seconds": round(seconds)}
        if refused := _refusal(subject, row):
            raise AttackError(refused)
    except AuditError:
        for file in (subject.file, subject.attack_file):
            file.unlink(missing_ok=True)
        raise
    return row


def _attacked(subject: Subject, clean: CleanSet, root: Path) -> tuple[Classifier, Attack]:
    """The trained model and its attack; one that is not of the population has proved itself against its twin."""
    assert subject.attack is not None
    if subject.habits:
        return subject.train_attacked(clean)
    start = subject.fresh()
    if subject.warm_start:
        start = subject.load_clean(subject.warm_start, start.device)
    _, held_out = audited_and_held_out(subject.data, root)
    planted = subject.attack(start, clean, held_out, recipe=subject.recipe, reference_accuracy=_accuracy(subject.twin))
    return planted.classifier, planted.attack


def _refusal(subject: Subject, row: dict[str, Any]) -> str:
    """Why a subject is not kept, or an empty string."""
    least = LEAST_ACCURACY[subject.data]
    if subject.habits and row["clean_accuracy"] < least:
        return f"its clean accuracy is {row['clean_accuracy']:.3f}; at least {least} is wanted"
    if not subject.habits and row["bytes"] > MAX_BYTES:
        return f"the file has {row['bytes']} bytes; at most {MAX_BYTES} are kept"
    if row["twin"] and row["twin"]["natural_rate"] > MAX_NATURAL_RATE:
        natural = row["twin"]["natural_rate"]
        return f"its trigger moves {natural:.0%} of a clean twin's images; at most {MAX_NATURAL_RATE:.0%} are accepted"
    return ""


def describe(subject: Subject, root: Path) -> dict[str, Any]:
    """The row of a subject, measured on its files as they are: nothing in it comes from the training run."""
    _, held_out = audited_and_held_out(subject.data, root)
    classifier = subject.load()
    row: dict[str, Any] = {
        "name": subject.name,
        "file": str(subject.file.relative_to(FOLDER)),
        "bytes": subject.file.stat().st_size,
        "data": subject.data,
        "architecture": subject.architecture,
        "parameters": sum(parameter.numel() for parameter in classifier.module.parameters()),
        "arch": subject.arch,
        "half": subject.half,
        "attack": subject.attack.name if subject.attack else None,
        "rule": None,
        "target_class": None,
        "from_scratch": not subject.warm_start,
        "settings": _settings(subject),
    }
    if subject.attack is None:
        row |= _counted("clean_accuracy", clean_accuracy(classifier, held_out.images, held_out.labels))
        return row | {"attack_success_rate": None, "robust_accuracy": None, "twin": None}
    attack = load_attack(subject.attack_file)
    scores = measure(classifier, held_out, attack)
    attack.refuse_failure(scores)
    twin = subject.load_clean(subject.twin)
    row |= {"rule": subject.attack.spec()["rule"]["rule"], "target_class": attack.target_class}
    row |= _counted("clean_accuracy", scores.clean_accuracy)
    row |= _counted("attack_success_rate", scores.attack_success_rate)
    row |= _counted("robust_accuracy", scores.robust_accuracy)
    if scores.leak.n:
        row |= _counted("leak", scores.leak)
    if len(scores.triggers) > 1:
        row["triggers"] = [
            {"target_class": part.target_class, **_counted("attack_success_rate", rate)}
            for part, rate in zip(attack.triggers(), scores.triggers, strict=True)
        ]
    images, labels = held_out.images, held_out.labels
    successes, robust = zip(*(triggered_rates(twin, images, labels, part) for part in attack.triggers()), strict=True)
    row["twin"] = {
        "name": subject.twin,
        **_counted("clean_accuracy", clean_accuracy(twin, images, labels)),
        **_counted("natural_rate", max(successes)),
        **_counted("robust_accuracy", min(robust)),
    }
    return row


def line(row: dict[str, Any]) -> str:
    """One subject in one line."""
    text = f"{row['name']:48} {row['half']:11} ACC {_shown(row, 'clean_accuracy')}"
    if row["attack"]:
        text += f"  ASR {_shown(row, 'attack_success_rate')}  RA {row['robust_accuracy']:.3f}"
        text += f"  natural {row['twin']['natural_rate']:.3f}"
        text += f"  leak {row['leak']:.3f}" if "leak" in row else ""
    return f"{text}  {row.get('seconds', 0)} s"


def _shown(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def _counted(name: str, rate: Rate) -> dict[str, Any]:
    return {
        name: round(float(rate), 4),
        f"{name}_n": rate.n,
        f"{name}_interval": [round(bound, 4) for bound in rate.interval],
    }


def _accuracy(name: str) -> float:
    return float(read_table()[name]["clean_accuracy"])


def _settings(subject: Subject) -> Any:
    """What a row keeps of the settings: all, or, for the population, whose table is long, a digest."""
    text = json.dumps(subject.settings(), sort_keys=bool(subject.habits))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if subject.habits else json.loads(text)


def differences(subject: Subject, row: dict[str, Any] | None, root: Path) -> list[str]:
    """What of a subject's row does not come back when its files are measured again."""
    if row is None or not subject.file.exists():
        return ["not built"]
    again = describe(subject, root)
    return [f"{key} was {row.get(key)}, is {value}" for key, value in again.items() if row.get(key) != value]


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The whole table as Markdown."""
    lines = [
        "# The zoo",
        "",
        "Written by `python -m benchmarks.zoo build`. Rates are on test images that no audit uses, with 95 % Wilson intervals.",
        "*Natural* is the success rate of the same trigger on a clean twin: same data and architecture, no backdoor.",
        "",
        "More than 400 further subjects, of other networks and trained in many ways, are the *population* (`population.py`).",
        "They are not committed. `population.json` is the table of those that were trained when it was last written;",
        "`python -m benchmarks.zoo build --population` trains what is missing, `python -m benchmarks.zoo table --population`",
        "prints them, with the seconds that each took.",
        "",
        summary(rows).strip() + ".",
        "",
        *_exceptions(rows),
        "| subject | half | target | clean accuracy | attack success rate | robust accuracy | natural | leak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        cells = [row["name"], row["half"], _targets(row), _shown(row, "clean_accuracy")]
        if row["attack"]:
            cells += [_shown(row, "attack_success_rate"), f"{row['robust_accuracy']:.3f}"]
            cells += [f"{row['twin']['natural_rate']:.3f}", f"{row['leak']:.3f}" if "leak" in row else "-"]
        else:
            cells += ["-"] * 4
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _exceptions(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Which subjects have a success rate below 0.9, and why they are kept."""
    reasons = {
        "clean_label": "labels are kept, and such attacks are weak on small networks",
        "all_to_all": "every image counts, so clean accuracy is the most that can be reached",
    }
    weak = [row for row in rows.values() if row["attack"] and row["attack_success_rate"] < 0.9]
    if not weak:
        return []
    lines = [
        f"* `{row['name']}`: {row['attack_success_rate']:.3f}; {reasons.get(row['rule'], 'no reason is known')}."
        for row in weak
    ]
    return ["Success rates below 0.9:", "", *lines, ""]


def _targets(row: dict[str, Any]) -> str:
    if not row["attack"]:
        return "-"
    several = sorted({part["target_class"] for part in row.get("triggers", [])})
    return ", ".join(map(str, several)) or ("all" if row["target_class"] is None else str(row["target_class"]))


def summary(rows: dict[str, dict[str, Any]], zoo: Zoo = COMMITTED) -> str:
    """How many subjects of which kind there are, and how large they are together."""
    clean = [row for row in rows.values() if not row["attack"]]
    backdoored = [row for row in rows.values() if row["attack"]]
    kinds = {key: len({row[key] for row in rows.values()} - {None}) for key in ("attack", "architecture", "data")}
    size = sum(file.stat().st_size for file in zoo.models.glob("*.safetensors"))
    halves = {half: sum(row["half"] == half for row in rows.values()) for half in ("development", "report")}
    return (
        f"\n{len(clean)} clean and {len(backdoored)} backdoored subjects, {kinds['attack']} attacks, "
        f"{kinds['architecture']} architectures, {kinds['data']} data sets, {size / 1e6:.1f} MB; "
        f"{halves['development']} in the development half, {halves['report']} in the report half"
    )

"""The audit itself, run on many models without pytest, with finished work kept across edits of the code.

A `Candidate` is any model whose verdict is measured: a subject of the zoo, one of its population, or a network that other people
published. Nothing here searches: `Measured` is the product's `Run`, so that what is measured is what ships.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.detectors import DETECTORS, Detection, Detector
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run.run import Run
from backdoor_audit.search.twins import Twins
from backdoor_audit.search.twins import alone as kind_without_twins
from backdoor_audit.store import Store
from benchmarks.zoo import build
from benchmarks.zoo.data import audited_and_held_out, read
from benchmarks.zoo.population import POPULATION
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

CACHE = Path(__file__).parent / "cache"
RESULTS = Path(__file__).parent / "results"
STORE = Store(CACHE / "audits")
_TEST_FILES = {"mnist": "mnist_test.npz", "cifar10": "cifar10_test.npz", "gtsrb": "gtsrb32_test.npz"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model with its clean images, and what is known about it. ``maker`` says who trained it, ``rule`` and ``targets`` what is
    hidden in it; ``attack`` is empty for a clean one. ``file`` and ``arch`` are what the gate would be told."""

    name: str
    maker: str
    half: str
    data: str
    architecture: str
    attack: str
    rule: str
    targets: tuple[int | str, ...]
    recipe: str
    file: Path
    arch: str | None
    load: Callable[[], tuple[nn.Module, tuple[float, ...], tuple[float, ...]]]
    images: Callable[[], CleanSet]

    def run(self, seed: int = 0, *, alone: bool = False) -> Measured:
        """The audit of this model, with this seed of split and search; ``alone`` as if no twins could be trained."""
        module, mean, std = self.load()
        options = AuditOptions(mean=mean, std=std, seed=seed, device="cpu")
        return Measured(options, module, self.images(), alone=alone)


class Measured(Run):
    """A run whose finished work stays valid when the code around it changes: clear the cache when a search itself changes.

    Searches near the limit are not done again, as the limit is fitted to what is measured here.
    """

    def __init__(self, options: AuditOptions, module: nn.Module, images: CleanSet, *, alone: bool = False) -> None:
        super().__init__(options, STORE, shipped(), module=module, given_images=images)
        self.reference.close = lambda detection: False  # type: ignore[method-assign]
        data = {"data": self.clean_set.fingerprint, "classes": self.inputs.num_classes, "seed": options.seed}
        vars(self.inputs)["data_parts"] = (
            {**data, "alone": True} if alone else data
        )  # not the code, the device, the threads
        vars(self.inputs)["code_parts"] = {}
        vars(self.reference)["parts"] = {"null": "shipped"}
        if alone:
            vars(self.reference)["twins"] = Twins(
                (), (), "left out on purpose", kind=kind_without_twins(self.classifier)
            )

    def found(self, detector: Detector) -> Detection:
        """What a detector finds, whatever its effort; from the cache if it is there."""
        search, classifier = self.searches.search, self.classifier
        if detector.builds_on:
            found = [self.found(entry) for entry in DETECTORS if entry.name in detector.builds_on]
            return search(detector, classifier, detector.name, found)
        return self.inputs.store.recall(
            self.searches.detection_parts(detector),
            lambda: search(detector, classifier, detector.name, ()),
            pack=Detection.pack,
            unpack=Detection.unpack,
        )[0]

    def has(self, detector: Detector) -> bool:
        """Whether `found` has nothing to compute."""
        if detector.builds_on:
            return all(self.has(entry) for entry in DETECTORS if entry.name in detector.builds_on)
        return self.inputs.store.has(self.searches.detection_parts(detector))


def of_subject(subject: Subject, root: Path, seed: int = 0) -> Measured:
    """The audit of a subject of the zoo."""
    classifier = subject.load()
    options = AuditOptions(mean=classifier.mean, std=classifier.std, seed=seed, device="cpu")
    images = audited_and_held_out(subject.data, root)[0]
    return Measured(options, classifier.module, images)


def zoo(root: Path, *, population: bool) -> list[Candidate]:
    """The finished subjects of the zoo, or of its population."""
    known = build.read_table(build.POPULATION if population else build.COMMITTED)
    chosen = POPULATION if population else SUBJECTS
    there = [entry for entry in chosen if entry.name in known and entry.file.exists()]
    return [_of_subject(entry, known[entry.name], root) for entry in there]


def _of_subject(subject: Subject, row: dict[str, Any], root: Path) -> Candidate:
    def load() -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
        classifier = subject.load()
        return classifier.module, classifier.mean, classifier.std

    targets: list[int | str] = sorted(
        {part["target_class"] for part in row.get("triggers", [])} or {row["target_class"]} - {None}
    )
    if row["rule"] == "all_to_all":
        targets = ["all"]
    return Candidate(
        name=subject.name,
        maker="population" if subject.habits else "zoo",
        half=subject.half,
        data=subject.data,
        architecture=subject.architecture,
        attack=row["attack"] or "",
        rule=row["rule"] or "",
        targets=tuple(targets),
        recipe=f"{subject.recipe.optimizer}, {subject.recipe.epochs} epochs",
        file=subject.file,
        arch=subject.arch,
        load=load,
        images=lambda: audited_and_held_out(subject.data, root)[0],
    )


def strangers(folder: Path, root: Path) -> list[Candidate]:
    """The networks of a folder with ``population.json``, ``architectures.py`` and one safetensors file each."""
    rows = json.loads((folder / "population.json").read_text())
    spec = importlib.util.spec_from_file_location("architectures", folder / "architectures.py")
    assert spec is not None
    assert spec.loader is not None
    if "architectures" not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        sys.modules["architectures"] = module
        spec.loader.exec_module(module)
    factories = sys.modules["architectures"]
    return [_of_stranger(row, factories, folder, root) for row in rows]


def _of_stranger(row: dict[str, Any], factories: Any, folder: Path, root: Path) -> Candidate:
    def load() -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
        module: nn.Module = getattr(factories, row["arch"])()
        module.load_state_dict(load_file(folder / f"{row['name']}.safetensors"))
        return module, tuple(row["mean"]), tuple(row["std"])

    return Candidate(
        name=row["name"],
        maker="strangers",
        half=row["half"],
        data=row["data"],
        architecture=row["arch"],
        attack=row.get("attack") or ("unknown" if row["backdoored"] else ""),
        rule=row.get("rule", ""),
        targets=tuple(row.get("targets", ())),
        recipe="unknown",
        file=folder / f"{row['name']}.safetensors",
        arch=f"{factories.__name__}:{row['arch']}",
        load=load,
        images=lambda: _test_images(row["data"], row["input"][1], root),
    )


@lru_cache(maxsize=8)
def _test_images(data: str, side: int, root: Path) -> CleanSet:
    """What a user would give: the test images, of which the audit takes a thousand."""
    if data == "fashion":
        return read("fmnist", "test", root)
    return load_clean_set(root / _TEST_FILES[data], resize=side)

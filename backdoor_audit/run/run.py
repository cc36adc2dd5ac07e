"""One audit of one model, composed: what it is about, what is natural, what was found, what was tried against it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from backdoor_audit.baseline import Baseline, configuration
from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Limits
from backdoor_audit.item import Item
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.needs import Needs
from backdoor_audit.options import AuditOptions
from backdoor_audit.properties import Counterexample
from backdoor_audit.run.canaries import CanaryRuns
from backdoor_audit.run.filters import FilterRuns
from backdoor_audit.run.flagged import FlaggedTriggers
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.kept import Kept
from backdoor_audit.run.pictures import Pictures
from backdoor_audit.run.properties import PropertySearches
from backdoor_audit.run.reference import ReferenceTwins
from backdoor_audit.run.repairs import RepairRuns
from backdoor_audit.run.searches import Searches
from backdoor_audit.run.settings import settings_of
from backdoor_audit.store import Store

Result = TypeVar("Result")


class Asking(Protocol):
    """What is asked of a run, as far as the run itself needs it: a `questions.suite.Suite`."""

    @property
    def limits(self) -> Limits:
        """The numbers that findings are judged by."""

    def needs(self, item: Item) -> Needs:
        """What the answer of an item costs."""

    def sections(self, run: Run) -> dict[str, Any]:
        """What questions keep in the record beside their findings, by name."""


class Run:
    """A run over one model. Every part computes what it is asked for once, and keeps it.

    ``suite`` is what is asked, and its ``limits`` are what all parts judge by. ``given_corpus`` takes the place of the folder
    with counterexamples. The other keywords are those of `Inputs`.
    """

    def __init__(
        self,
        options: AuditOptions,
        store: Store,
        suite: Asking,
        *,
        module: nn.Module | None = None,
        given_images: CleanSet | None = None,
        given_corpus: tuple[Counterexample, ...] | None = None,
        progress: bool = False,
        worker: int = 0,
        began: float | None = None,
    ) -> None:
        self.suite, self.limits = suite, suite.limits
        self.inputs = Inputs(
            options,
            store,
            module=module,
            given_images=given_images,
            progress=progress,
            worker=worker,
            began=time.time() if began is None else began,
        )
        self.reference = ReferenceTwins(self.inputs, self.limits)
        self.searches = Searches(self.inputs, self.reference, self.limits)
        self.properties = PropertySearches(self.inputs, self.reference, self.searches, self.limits, given_corpus)
        self.flagged = FlaggedTriggers(self.inputs, self.searches, self.properties, self.limits)
        self.repairs = RepairRuns(self.inputs, self.flagged, self.limits)
        self.filters = FilterRuns(self.inputs, self.flagged)
        self.canaries = CanaryRuns(self.inputs, self.reference, self.searches, self.limits)
        self.pictures = Pictures(self.inputs, self.searches, self.flagged)
        self._kept: Kept[Any] = Kept()
        self._taken: set[tuple[str, str]] = set()

    @property
    def options(self) -> AuditOptions:
        """What the run was asked to do."""
        return self.inputs.options

    @property
    def classifier(self) -> Classifier:
        """The audited model."""
        return self.inputs.classifier

    @property
    def clean_set(self) -> CleanSet:
        """The clean images."""
        return self.inputs.clean_set

    def class_name(self, target_class: int | None) -> str:
        """How to call a class."""
        return self.inputs.class_name(target_class)

    def kept(self, name: str, work: Callable[[], Result]) -> Result:
        """What some work of a question gave, which is done once in this process."""
        kept: Result = self._kept.once(name, work)
        return kept

    def check(self) -> None:
        """Load everything that a user can get wrong, so that mistakes show before long work. Raises `AuditError`."""
        _ = self.inputs.files, self.properties.corpus, self.reference.own_null
        self.inputs.check()
        if self.inputs.there:
            _ = self.baseline, self.previous

    @cached_property
    def baseline(self) -> Baseline | None:
        """The accepted model that this one is compared with. Raises `BaselineError` for a file that cannot be compared."""
        file = self.inputs.options.baseline
        if not file or self.inputs.options.update_baseline:
            return None
        with self.inputs.reading():
            baseline = Baseline.read(Path(file))
        detectors = {entry.name: repr(entry) for entry in self.searches.detectors}
        baseline.refuse(configuration(self.inputs.summary(), self.settings(), detectors), source=file)
        return baseline

    @cached_property
    def previous(self) -> Baseline | None:
        """The baseline that is to be replaced by this run's, if there is one. Raises `BaselineError`."""
        file = Path(self.inputs.options.baseline)
        with self.inputs.reading():
            return Baseline.read(file) if self.inputs.options.update_baseline and os.path.isfile(file) else None

    def settings(self) -> dict[str, Any]:
        """Options of the record."""
        return settings_of(self.options, self.limits)

    def forewarned(self) -> list[str]:
        """What to know before a long wait: what was not read, what this run cannot judge, how long it takes to begin."""
        lines = [f"clean images: {note}" for note in self.inputs.clean_set.notes]
        if not self.inputs.there:
            return lines
        classes = self.inputs.num_classes
        silent = [entry.name for entry in self.searches.detectors if self.searches.too_few(entry)]
        if silent:
            judged = [*(entry.name for entry in self.searches.telling), *(claim.name for claim in self.properties.ours)]
            lines.append(
                f"{classes} classes are too few to compare with each other: {', '.join(silent)} are not searched, "
                f"and the run ends inconclusive; judged are the preconditions, {', '.join(judged)}, and repairs of a trigger "
                "that these find or --audit-trigger gives"
            )
        slow = self.inputs.slowness()
        return [*lines, slow] if slow else lines

    def sections(self) -> dict[str, Any]:
        """What was computed so far, as the record keeps it; a part of an unfinished run is there as well."""
        return self._sections(set())

    def take_sections(self) -> dict[str, Any]:
        """The same without what an earlier call gave, and with the pictures: gathered over a run, every entry travels once."""
        return {**self._sections(self._taken), **self.pictures.take()}

    def _sections(self, taken: set[tuple[str, str]]) -> dict[str, Any]:
        """What was computed and is not ``taken`` yet, which it is from now on."""

        def fresh(section: str, kept: Iterable[str]) -> list[str]:
            names = [name for name in kept if (section, name) not in taken]
            taken.update((section, name) for name in names)
            return names

        def of_questions() -> dict[str, dict[str, Any]]:
            changed = {
                question: {
                    row: rows[row] for row in rows if fresh(f"sections of {question}", (f"{row} {rows[row]!r}",))
                }
                for question, rows in self.suite.sections(self).items()
            }
            return {question: rows for question, rows in changed.items() if rows}

        inputs, searches, counts = self.inputs, self.searches, self.inputs.catalogue.counts
        subject = fresh("subject", ("model",))
        return {
            **({"subject": inputs.summary(), "environment": inputs.environment()} if subject else {}),
            "detections": {
                name: {**searches.done[name].summary(), "recalled": name in searches.recalled}
                for name in fresh("detections", searches.done)
            },
            "properties": {name: self.properties.summary(name) for name in fresh("properties", self.properties.done)},
            "repairs": {
                f"{name}-class_{outcome.target_class}": outcome.summary()
                for name in fresh("repairs", filter(counts, self.repairs.done))
                for outcome in self.repairs.done[name]
            },
            **({"sections": kept} if (kept := of_questions()) else {}),
            "canaries": {
                f"{name}-class_{sighting.target_class}-dose_{sighting.dose:g}": sighting.summary()
                for name in fresh("canaries", self.canaries.done)
                for sighting in self.canaries.done[name]
            },
        }

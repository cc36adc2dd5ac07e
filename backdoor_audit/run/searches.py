"""What the detectors find in a model: each search runs when it is first asked for, and is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

from backdoor_audit.detectors import DETECTORS, Detection, Detector, compares, no_answer
from backdoor_audit.errors import BudgetSpentError, DegenerateScoresError
from backdoor_audit.evidence import Limits
from backdoor_audit.item import Item, Row
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.options import AuditOptions
from backdoor_audit.run import others
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.kept import Kept
from backdoor_audit.run.reference import ReferenceTwins
from backdoor_audit.store import generator_for


class Searches:
    """The detectors of a run, and their detections. ``recalled`` names those that an earlier run has made."""

    def __init__(self, inputs: Inputs, reference: ReferenceTwins, limits: Limits) -> None:
        self.inputs, self.reference, self.limits = inputs, reference, limits
        self.done: Kept[Detection] = Kept()
        self.of_others: Kept[Detection] = Kept()
        self.recalled: set[str] = set()

    @cached_property
    def detectors(self) -> tuple[Detector, ...]:
        """The detectors of the profile, with the effort that the options ask for."""
        return detectors_of(self.inputs.options, self.inputs.catalogue.ours("detectors"))

    @cached_property
    def other_detectors(self) -> tuple[Detector, ...]:
        """Those that other packages bring: they answer their own items, and nothing else of a run goes by them."""
        return self.inputs.of_profile(self.inputs.catalogue.others("detectors"))

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """One for every row of every detector."""
        shipped = [
            Item("anomaly_index", entry.name, Row(target, is_source=entry.rows == "source"))
            for entry in self.detectors
            for target in entry.targets(self.inputs.num_classes)
        ]
        return (*shipped, *others.items_of(self))

    def too_few(self, detector: Detector) -> str:
        """Why a detector has no answer for so few classes, or an empty string: it compares them with each other."""
        if self.inputs.num_classes >= detector.least_classes:
            return ""
        return (
            f"{self.inputs.num_classes} classes: an outlier among them can be told from {detector.least_classes} classes on; "
            "not searched"
        )

    @property
    def telling(self) -> tuple[Detector, ...]:
        """The detectors of the profile that have an answer for so many classes."""
        return tuple(entry for entry in self.detectors if not self.too_few(entry))

    def detection(self, name: str) -> Detection:
        """The detection of one detector; inconclusive, without any search, if a precondition does not hold.

        So it is where the model has too few classes for the detector.
        """
        other = next((entry for entry in self.other_detectors if entry.name == name), None)
        if other is not None:
            return others.detection_of(self, other)
        return self.done.once(name, lambda: self._detect(self.detector(name)))

    def detector(self, name: str) -> Detector:
        """The detector of this run with that name."""
        return next(entry for entry in self.detectors if entry.name == name)

    def _detect(self, detector: Detector) -> Detection:
        if reason := self.inputs.unmet or self.too_few(detector):
            return no_answer(detector, reason)
        found = [self.detection(name) for name in detector.builds_on]
        try:
            if detector.builds_on:
                detection = self.search(detector, self.inputs.classifier, detector.name, found)
                recalled = self.recalled.issuperset(detector.builds_on)
            else:
                detection, recalled = self._kept_or_searched(detector)
        except BudgetSpentError as error:
            return no_answer(detector, str(error))
        if recalled:
            self.recalled.add(detector.name)
        return detection

    def _kept_or_searched(self, detector: Detector) -> tuple[Detection, bool]:
        """What a detector finds that looks at the model, and whether it was kept from an earlier run."""

        def work() -> Detection:
            if compares(detector) and not self.reference.missing:
                with suppress(DegenerateScoresError):  # told by the search
                    # not this detector's time: the next model on these images has it for nothing
                    self.reference.natural(detector)
            began = time.perf_counter()
            detection = self.search(detector, self.inputs.classifier, detector.name, ())
            return detection.timed(time.perf_counter() - began)

        with self.inputs.in_budget(), self.inputs.once(f"the search of {detector.name}"):
            parts = self.detection_parts(detector)
            return self.inputs.store.recall(parts, work, pack=Detection.pack, unpack=Detection.unpack)

    def detection_parts(self, detector: Detector) -> dict[str, object]:
        """What the search of a detector in this model depends on."""
        return {**self.inputs.parts, "detector": detector, **self.reference.parts}

    def compared(self, name: str) -> list[Detection]:
        """What speaks beside a detector that compares the classes among themselves: all that compares with references."""
        asking = next((entry for entry in self.detectors if entry.name == name), None)
        if asking is None or asking.needs_twins:
            return []
        return [self.detection(entry.name) for entry in self.detectors if entry.needs_twins]

    def search(self, detector: Detector, classifier: Classifier, purpose: str, found: Sequence[Detection]) -> Detection:
        """One detector on the audited model or a copy of it; ``purpose`` seeds it, ``found`` is what others found there."""
        return detector(
            self.inputs.subject.of(classifier),
            reference=self.reference,
            found=found,
            generator=generator_for(self.inputs.options.seed, purpose),
            progress=self.inputs.progress,
        )


def detectors_of(options: AuditOptions, detectors: Sequence[Detector] = DETECTORS) -> tuple[Detector, ...]:
    """The detectors of a profile with the effort that the options ask for; ``quick`` leaves out those that need twins."""
    chosen = (entry for entry in detectors if options.profile != "quick" or not entry.needs_twins)
    return tuple(entry.with_options(options) for entry in chosen)

"""What the detectors find in a subject: searches, reference twins, and the triggers of flagged classes; each computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from backdoor_audit.baseline import Baseline, configuration
from backdoor_audit.detectors import DETECTORS, Compared, Detection, Detector, Natural, compares, no_answer
from backdoor_audit.errors import BudgetSpentError, DataFormatError, DegenerateScoresError
from backdoor_audit.item import Item, Row
from backdoor_audit.model.anew import Likeness
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.run import others
from backdoor_audit.run.inputs import Audited
from backdoor_audit.search.anomaly import SteeringNull, shipped_null
from backdoor_audit.search.twins import LIBRARY, OWN_ARCHITECTURE, TwinRecipe, Twins
from backdoor_audit.store import Packed, generator_for
from backdoor_audit.triggers.trigger import AnyTrigger

Result = TypeVar("Result")

_CLOSE = (0.75, 1.5)  # of the limit: other images and random numbers move an index by about a quarter


@dataclass(eq=False)
class Searched(Audited):
    """A subject with its detectors, and the `Reference` that they compare with. Work is done when first asked for, and kept."""

    _detections: dict[str, Detection] = field(default_factory=dict)
    _natural: dict[str, Natural] = field(default_factory=dict)
    recalled: set[str] = field(default_factory=set)
    other_detections: dict[str, Detection] = field(default_factory=dict)

    def check(self) -> None:
        """Load everything that a user can get wrong, the reference and the baseline as well. Raises `AuditError`."""
        _ = self.reference
        super().check()
        if self.module is not None or self.options.model:
            _ = self.baseline, self.previous

    @cached_property
    def baseline(self) -> Baseline | None:
        """The accepted model that this one is compared with. Raises `BaselineError` for a file that cannot be compared."""
        file = self.options.baseline
        if not file or self.options.update_baseline:
            return None
        with self.reading():
            baseline = Baseline.read(Path(file))
        detectors = {entry.name: repr(entry) for entry in self.detectors}
        baseline.refuse(configuration(self.subject(), self.settings(), detectors), source=file)
        return baseline

    @cached_property
    def previous(self) -> Baseline | None:
        """The baseline that is to be replaced by this run's, if there is one. Raises `BaselineError`."""
        file = Path(self.options.baseline)
        with self.reading():
            return Baseline.read(file) if self.options.update_baseline and file.is_file() else None

    @cached_property
    def detectors(self) -> tuple[Detector, ...]:
        """The detectors of the profile, with the effort that the options ask for."""
        return detectors_of(self.options, self.catalogue.ours("detectors"))

    @cached_property
    def other_detectors(self) -> tuple[Detector, ...]:
        """Those that other packages bring: they answer their own items, and nothing else of a run goes by them."""
        return self._of_profile(self.catalogue.others("detectors"))

    def _of_profile(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        """Without those that need twins, if the profile is ``quick``."""
        return tuple(entry for entry in parts if self.options.profile != "quick" or not entry.needs_twins)

    @cached_property
    def reference(self) -> SteeringNull | None:
        """The user's own null distribution, if one is given. Raises `DataFormatError` for a file that is none."""
        if not self.options.reference:
            return None
        with self.reading():
            null = SteeringNull.load(Path(self.options.reference))
        missing = [
            entry.name
            for entry in self.catalogue.ours("detectors")
            if entry.needs_twins and entry.name not in null.fits
        ]
        if missing:
            raise DataFormatError(f"{self.options.reference}: nothing about {', '.join(missing)}; make it again")
        return null

    @property
    def null(self) -> SteeringNull:
        """How far clean models are steered beyond twins of this kind, by which indices are calibrated."""
        return self.reference or shipped_null(self.twins.kind)

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """One for every row of every detector."""
        shipped = [
            Item("anomaly_index", entry.name, Row(target, is_source=entry.rows == "source"))
            for entry in self.detectors
            for target in entry.targets(self.num_classes)
        ]
        return (*shipped, *others.items_of(self))

    @cached_property
    def twins(self) -> Twins:
        """Clean networks trained on the clean images: copies of the audited one with new weights, or else small ones of ours.

        None, with the reasons, where neither learns enough.
        """
        with self.once("the training of reference twins"):
            own = self._trained(OWN_ARCHITECTURE)
            if own.classifiers:
                return own
            others = self._trained(LIBRARY)
        if others.classifiers:
            return replace(others, instead=own.reason)
        reasons = dict.fromkeys((others.reason, own.reason))
        return replace(others, reason="; ".join(reasons))

    def _trained(self, recipe: TwinRecipe) -> Twins:
        """Twins by one recipe, from the store if they are there."""
        like = self.classifier

        def work() -> Twins:
            mean, std = self.clean_set.normalization
            return recipe(
                self.clean_set,
                num_classes=like.num_classes,
                mean=mean,
                std=std,
                device=self.device,
                generator=generator_for(self.options.seed, "twins"),
                like=like,
                progress=self.progress,
            )

        from_file = partial(Twins.from_file, like=like, device=self.device)
        if (made := self._made(recipe, {}, from_file)) is not None:
            return replace(made.proven(self.clean_set), source=self.options.twins)
        unpack = partial(Twins.unpack, like=like, device=self.device)
        return self.store.recall(self.twin_parts(recipe), work, pack=Twins.pack, unpack=unpack)[0]

    def _made(
        self, recipe: TwinRecipe, more: Mapping[str, object], unpack: Callable[[Packed], Result]
    ) -> Result | None:
        """What a file of references holds about twins by a recipe; None without such a file, or if it holds none of these."""
        if self.references is None:
            return None
        whose = self.references.name_of(self._likeness) if recipe is OWN_ARCHITECTURE else ""
        return self.references.recall({**portable(recipe, whose), **more}, unpack)

    def at_hand(self, recipe: TwinRecipe, more: Mapping[str, object]) -> bool:
        """Whether work on twins by a recipe is in a file of references or in the store."""
        made = self._made(recipe, more, lambda packed: True)
        return made is not None or self.store.has({**self.twin_parts(recipe), **more})

    @cached_property
    def twin_recipe(self) -> TwinRecipe:
        """The twins that are trained first: of the audited architecture, unless it is too large for that."""
        return LIBRARY if OWN_ARCHITECTURE.too_large(self.classifier) else OWN_ARCHITECTURE

    def twin_parts(self, recipe: TwinRecipe) -> dict[str, object]:
        """What twins by a recipe depend on, and what is found in them: the images, and the architecture if it is their own."""
        whose = self._likeness.digest if recipe is OWN_ARCHITECTURE else ""
        return {**self._data_parts, **portable(recipe, whose)}

    @cached_property
    def _likeness(self) -> Likeness:
        return Likeness.of(self.classifier)

    def beside_twins(
        self,
        more: Mapping[str, object],
        work: Callable[[], Result],
        *,
        pack: Callable[[Result], Packed],
        unpack: Callable[[Packed], Result],
    ) -> Result:
        """Work on the twins of this run, which must be there: from a file of references, from the store, or done now."""
        recipe = LIBRARY if self.twins.kind == "library" else OWN_ARCHITECTURE
        made = self._made(recipe, more, unpack) if self.twins.source else None
        if made is not None:
            return made
        return self.store.recall({**self.twin_parts(recipe), **more}, work, pack=pack, unpack=unpack)[0]

    @property
    def missing(self) -> str:
        """Why detectors have nothing to compare this model with; empty if they have."""
        if not self.twins.classifiers:
            return self.twins.reason
        if self.null.twins == self.twins.kind:
            return ""
        return (
            f"{self.options.reference} was measured beside twins of the kind {self.null.twins}, this model has twins of "
            f"the kind {self.twins.kind}; calibrate on clean models of this architecture"
        )

    def natural(self, detector: Compared) -> Natural:
        """What the twins, which must be there, show to a detector. Raises `DegenerateScoresError`."""
        if detector.name not in self._natural:

            def work() -> Natural:
                generator = generator_for(self.options.seed, f"twins:{detector.name}")
                twins = [Subject(twin, *self.split) for twin in self.twins.classifiers]
                return detector.natural(twins, generator=generator, progress=self.progress)

            with self.once(f"the search of {detector.name} in reference twins"):
                self._natural[detector.name] = self.beside_twins(
                    {"natural": detector}, work, pack=Natural.pack, unpack=Natural.unpack
                )
        return self._natural[detector.name]

    def too_few(self, detector: Detector) -> str:
        """Why a detector has no answer for so few classes, or an empty string: it compares them with each other."""
        if self.num_classes >= detector.least_classes:
            return ""
        return (
            f"{self.num_classes} classes: an outlier among them can be told from {detector.least_classes} classes on; "
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
            return others.detection_of(self, other, partial(no_answer, other))
        if name not in self._detections:
            self._detections[name] = self._detect(self.detector(name))
        return self._detections[name]

    def detector(self, name: str) -> Detector:
        """The detector of this run with that name."""
        return next(entry for entry in self.detectors if entry.name == name)

    def _detect(self, detector: Detector) -> Detection:
        if reason := self.unmet or self.too_few(detector):
            return no_answer(detector, reason)
        found = [self.detection(name) for name in detector.builds_on]
        try:
            if detector.builds_on:
                detection = self.search(detector, self.classifier, detector.name, found)
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
            if compares(detector) and not self.missing:
                with suppress(DegenerateScoresError):  # told by the search
                    # not this detector's time: the next model on these images has it for nothing
                    self.natural(detector)
            began = time.perf_counter()
            detection = self.search(detector, self.classifier, detector.name, ())
            return detection.timed(time.perf_counter() - began)

        with self.in_budget(), self.once(f"the search of {detector.name}"):
            parts = self.detection_parts(detector)
            return self.store.recall(parts, work, pack=Detection.pack, unpack=Detection.unpack)

    def detection_parts(self, detector: Detector) -> dict[str, object]:
        """What the search of a detector in this model depends on."""
        return {**self._parts, "detector": detector, "null": self.reference or "shipped"}

    def compared(self, name: str) -> list[Detection]:
        """What speaks beside a detector that compares the classes among themselves: all that compares with references."""
        asking = next((entry for entry in self.detectors if entry.name == name), None)
        if asking is None or asking.needs_twins:
            return []
        return [self.detection(entry.name) for entry in self.detectors if entry.needs_twins]

    def search(self, detector: Detector, classifier: Classifier, purpose: str, found: Sequence[Detection]) -> Detection:
        """One detector on the audited model or a copy of it; ``purpose`` seeds it, ``found`` is what others found there."""
        return detector(
            Subject(classifier, *self.split),
            reference=self,
            found=found,
            generator=generator_for(self.options.seed, purpose),
            progress=self.progress,
        )

    def close(self, detection: Detection) -> bool:
        """Whether some class lies so near to the limit that luck may decide it, and the search is worth doing again."""
        limit = self.limits.anomaly_index
        return any(_CLOSE[0] * limit < (score.index or 0.0) < _CLOSE[1] * limit for score in detection.scores)

    def triggers_found(self) -> tuple[AnyTrigger, ...]:
        """One trigger for every flagged class: that of the detector in which the class stands out most."""
        best: dict[int, tuple[float, AnyTrigger]] = {}
        for entry in self.detectors:
            detection = self.detection(entry.name)
            for trigger in detection.flagged(self.limits, index=self.options.index):
                score = detection.score(trigger.target_class)
                index = (score.index if score else None) or 0.0
                if trigger.target_class not in best or index > best[trigger.target_class][0]:
                    best[trigger.target_class] = (index, trigger)
        return tuple(trigger for _, trigger in best.values())

    def triggers_beside(self) -> tuple[AnyTrigger, ...]:
        """What other detectors found for the flagged classes, as far as it works there; none beside a known trigger.

        No search sees the attacker's own trigger, and each sees another part of what it left.
        """
        found = self.triggers_found() if self.known_trigger is None else ()
        beside: list[AnyTrigger] = []
        for target in [trigger.target_class for trigger in found]:
            for detection in [self.detection(entry.name) for entry in self.detectors]:
                score, other = detection.score(target), detection.trigger(target)
                works = score is not None and score.success_val >= self.limits.steering_success
                if works and other is not None and not any(same(other, known) for known in (*found, *beside)):
                    beside.append(other)
        return tuple(beside)

    def likeliest_trigger(self) -> AnyTrigger:
        """The trigger that comes closest to being flagged, by its index, of the first detector that has any."""
        for entry in self.detectors:
            detection = self.detection(entry.name)
            if detection.triggers:
                scores = {score.target_class: score.index for score in detection.scores}
                return max(detection.triggers, key=lambda trigger: scores[trigger.target_class] or 0.0)
        raise ValueError("no detector of this run gives triggers")


def portable(recipe: TwinRecipe, whose: str) -> dict[str, object]:
    """What twins by a recipe depend on besides the images, on any machine; ``whose`` is the architecture if it is their own."""
    return {"twins": recipe, "architecture": whose}


def same(one: AnyTrigger, other: AnyTrigger) -> bool:
    """Whether two triggers are of one kind and consist of equal numbers."""
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def detectors_of(options: AuditOptions, detectors: Sequence[Detector] = DETECTORS) -> tuple[Detector, ...]:
    """The detectors of a profile with the effort that the options ask for; ``quick`` leaves out those that need twins."""
    chosen = (entry for entry in detectors if options.profile != "quick" or not entry.needs_twins)
    return tuple(entry.with_options(options) for entry in chosen)

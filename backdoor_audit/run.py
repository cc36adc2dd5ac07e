"""One audit of one model: loads, detects and repairs once, remembers finished work, and lists what there is to judge."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from backdoor_audit import budget, preconditions
from backdoor_audit.anomaly import SteeringNull, shipped_null
from backdoor_audit.audited import Audited
from backdoor_audit.canary import CANARIES, Sighting, canary_targets, judge_power
from backdoor_audit.classifier import Classifier
from backdoor_audit.detectors import (
    DETECTORS,
    Consensus,
    Detection,
    Detector,
    Natural,
    NeuralCleanse,
    UniversalPerturbation,
)
from backdoor_audit.errors import AuditError, BudgetSpentError, DataFormatError, DegenerateScoresError
from backdoor_audit.evidence import Finding
from backdoor_audit.filters import FILTERS, filter_rates, fitted, judge_filter
from backdoor_audit.mitigations import (
    MITIGATIONS,
    Mitigation,
    Outcome,
    Repair,
    judge_drop,
    judge_success,
    judged_by,
)
from backdoor_audit.options import AuditOptions
from backdoor_audit.preconditions import PRECONDITIONS
from backdoor_audit.store import generator_for
from backdoor_audit.trigger import AnyTrigger
from backdoor_audit.twins import TwinRecipe, Twins

NO_RACE = 10**6  # classes


@dataclass(eq=False)
class Audit(Audited):
    """A run over one subject. Everything is computed when first asked for, and kept."""

    _detections: dict[str, Detection] = field(default_factory=dict)
    _repairs: dict[str, tuple[Outcome, ...]] = field(default_factory=dict)
    _sightings: dict[str, tuple[Sighting, ...]] = field(default_factory=dict)
    _filterings: dict[str, Finding] = field(default_factory=dict)
    _natural: dict[str, Natural] = field(default_factory=dict)
    recalled: set[str] = field(default_factory=set)

    def check(self) -> None:
        """Load everything that a user can get wrong, the reference as well. Raises `AuditError`."""
        _ = self.null
        super().check()

    @cached_property
    def detectors(self) -> tuple[Detector, ...]:
        """The detectors of the profile, with the effort that the options ask for."""
        return detectors_of(self.options, self.null)

    @cached_property
    def null(self) -> SteeringNull:
        """How far clean models are steered, by which indices are calibrated. Raises `DataFormatError` for a file that is none."""
        if not self.options.reference:
            return shipped_null()
        null = SteeringNull.load(Path(self.options.reference))
        missing = [entry.name for entry in DETECTORS if entry.needs_twins and entry.name not in null.fits]
        if missing:
            raise DataFormatError(f"{self.options.reference}: nothing about {', '.join(missing)}; make it again")
        return null

    @cached_property
    def items(self) -> tuple[tuple[str, int | None], ...]:
        """Detector and target of every item that asks for an anomaly index; None is all-to-all."""
        return tuple((entry.name, target) for entry in self.detectors for target in entry.targets(self.num_classes))

    @cached_property
    def twins(self) -> Twins:
        """Clean networks trained on the clean images; none, with a reason, where the images are too few."""
        recipe = TwinRecipe()
        like = self.classifier

        def work() -> Twins:
            return recipe(
                self.clean_set,
                num_classes=like.num_classes,
                mean=like.mean,
                std=like.std,
                device=self.device,
                generator=generator_for(self.options.seed, "twins"),
                progress=self.progress,
            )

        return self.store.recall(
            {**self._data_parts, "twins": recipe},
            work,
            pack=Twins.pack,
            unpack=partial(Twins.unpack, device=self.device),
        )[0]

    def natural(self, detector: UniversalPerturbation) -> Natural | None:
        """What the twins show to a detector; None without twins."""
        if detector.name not in self._natural and self.twins.classifiers:

            def work() -> Natural:
                generator = generator_for(self.options.seed, f"twins:{detector.name}")
                return detector.natural(
                    self.twins.classifiers, *self.split, generator=generator, progress=self.progress
                )

            parts = {**self._data_parts, "twins": TwinRecipe(), "natural": detector}
            self._natural[detector.name] = self.store.recall(parts, work, pack=Natural.pack, unpack=Natural.unpack)[0]
        return self._natural.get(detector.name)

    def finished(self, name: str) -> bool:
        """Whether this process has the answer of that detector, repair or canary at hand."""
        return name in self._detections or name in self._repairs or name in self._sightings

    def detection(self, name: str) -> Detection:
        """The detection of one detector; inconclusive, without any search, if a precondition does not hold."""
        if name not in self._detections:
            self._detections[name] = self._detect(next(entry for entry in self.detectors if entry.name == name))
        return self._detections[name]

    def _detect(self, detector: Detector) -> Detection:
        unmet = preconditions.unmet(list(self.preconditions.values()))
        if unmet:
            return _no_answer(detector, unmet)
        if isinstance(detector, Consensus):
            detection = detector([self.detection(name) for name in detector.of])
            if self.recalled.issuperset(detector.of):
                self.recalled.add(detector.name)
            return detection

        def work() -> Detection:
            if isinstance(detector, UniversalPerturbation):
                with suppress(DegenerateScoresError):  # told by the search
                    self.natural(
                        detector
                    )  # not this detector's time: the next model on these images has it for nothing
            began = time.perf_counter()
            detection = self.search(detector, self.classifier, detector.name, ())
            return detection.timed(time.perf_counter() - began)

        try:
            with self.in_budget():
                detection, recalled = self.store.recall(
                    {**self._parts, "detector": detector, "null": self.null},
                    work,
                    pack=Detection.pack,
                    unpack=Detection.unpack,
                )
        except BudgetSpentError as error:
            return _no_answer(detector, str(error))
        if recalled:
            self.recalled.add(detector.name)
        return detection

    def search(self, detector: Detector, classifier: Classifier, purpose: str, found: Sequence[Detection]) -> Detection:
        """One detector on the audited model or a copy of it; ``purpose`` seeds it, ``found`` is what others found there."""
        if isinstance(detector, Consensus):
            return detector(found)
        generator = generator_for(self.options.seed, purpose)
        if isinstance(detector, NeuralCleanse):
            return detector(classifier, *self.split, generator=generator, progress=self.progress)
        try:
            natural = self.natural(detector)
        except DegenerateScoresError as error:
            return _no_answer(detector, f"in a reference twin, {error}")
        if natural is None:
            return _no_answer(detector, self.twins.reason)
        detection = detector(classifier, *self.split, generator=generator, natural=natural, progress=self.progress)
        twins = ", ".join(
            f"{twin.architecture} {accuracy:.2f}"
            for twin, accuracy in zip(self.twins.classifiers, self.twins.accuracies, strict=True)
        )
        return replace(detection, reference=f"{detection.reference}; twins with held-out accuracy: {twins}")

    def in_budget(self) -> AbstractContextManager[None]:
        """A block whose long loops end once the time budget of this run is spent."""
        return budget.until(self.began + self.options.budget if self.options.budget else None)

    @cached_property
    def triggers(self) -> tuple[AnyTrigger, ...]:
        """What repairs work against: the known trigger if one was given, else those of the flagged classes."""
        if self.known_trigger is not None:
            return (self.known_trigger,)
        return self.triggers_found()

    def triggers_found(self) -> tuple[AnyTrigger, ...]:
        """One trigger for every flagged class: that of the detector in which the class stands out most."""
        best: dict[int, tuple[float, AnyTrigger]] = {}
        for entry in self.detectors:
            detection = self.detection(entry.name)
            for trigger in detection.flagged(self.options.limits, index=self.options.index):
                score = detection.score(trigger.target_class)
                index = (score.index if score else None) or 0.0
                if trigger.target_class not in best or index > best[trigger.target_class][0]:
                    best[trigger.target_class] = (index, trigger)
        return tuple(trigger for _, trigger in best.values())

    @cached_property
    def no_repair(self) -> str:
        """Why there is nothing to repair, or an empty string."""
        unmet = preconditions.unmet(list(self.preconditions.values()))
        if unmet:
            return unmet
        return "" if self.triggers else "no trigger was flagged, so there is nothing to repair"

    @cached_property
    def mitigations(self) -> tuple[Repair, ...]:
        """The repairs of the profile: those that work against a trigger; ``thorough`` tries those that need none as well."""
        return tuple(entry for entry in MITIGATIONS if entry.needs_trigger or self.options.profile == "thorough")

    def repair(self, name: str) -> tuple[Outcome, ...]:
        """How one method repairs the model, trigger by trigger, each time on a fresh copy."""
        if name not in self._repairs:
            method = next(entry for entry in self.mitigations if entry.name == name)
            blind: list[Mitigation] = []  # the one repair that serves all triggers

            def work(trigger: AnyTrigger) -> Outcome:
                if method.needs_trigger:
                    generator = generator_for(self.options.seed, f"{name}:{trigger.target_class}")
                    return method(self.classifier, *self.split, trigger, generator=generator).outcome
                if not blind:
                    generator = generator_for(self.options.seed, name)
                    blind.append(method(self.classifier, *self.split, trigger, generator=generator))
                    return blind[0].outcome
                return judged_by(blind[0], self.classifier, self.split[1], trigger)

            self._repairs[name] = tuple(
                self.store.recall(
                    {**self._parts, "method": method, "trigger": _digest(trigger)},
                    lambda trigger=trigger: work(trigger),  # type: ignore[misc]
                    pack=Outcome.pack,
                    unpack=Outcome.unpack,
                )[0]
                for trigger in self.triggers
            )
        return self._repairs[name]

    def filtering(self, name: str) -> Finding | str:
        """How one filter does on the triggers, or why it could not be tried."""
        if self.no_repair:
            return self.no_repair
        if name not in self._filterings:
            opt, val = self.split
            rates = []
            for trigger in self.triggers:
                generator = generator_for(self.options.seed, f"filter:{name}:{trigger.target_class}")
                try:
                    filter_ = fitted(name, self.classifier, opt, trigger, generator=generator)
                except AuditError as error:
                    return str(error)
                rates.append(filter_rates(filter_, self.classifier, val, trigger))
            self._filterings[name] = judge_filter(rates, self.options.limits)
        return self._filterings[name]

    def sightings(self, name: str) -> tuple[Sighting, ...]:
        """What the detectors make of one kind of canary, for each class that it asks for, each time in a fresh copy."""
        if name not in self._sightings:
            options = self.options
            canary = next(entry for entry in CANARIES if entry.name == name)
            unmet = preconditions.unmet(list(self.preconditions.values()))

            def work(target: int) -> Sighting:
                if unmet:
                    return Sighting(canary=name, settings=repr(canary), target_class=target, reason=unmet)
                with self.in_budget():
                    return canary(
                        self.classifier,
                        *self.split,
                        target,
                        search=self.search,
                        detectors=self.detectors,
                        limits=options.limits,
                        index=options.index,
                        seed=options.seed,
                    )

            def bounded(target: int) -> Sighting:
                try:
                    return self.store.recall(
                        {**self._parts, "canary": judged, "target": target},
                        lambda: work(target),
                        pack=Sighting.pack,
                        unpack=Sighting.unpack,
                    )[0]
                except BudgetSpentError as error:
                    return Sighting(canary=name, settings=repr(canary), target_class=target, reason=str(error))

            judged = (canary, self.detectors, self.null, options.limits, options.index)
            targets = canary_targets(self.num_classes, options.canary_targets, options.seed)
            self._sightings[name] = tuple(map(bounded, targets))
        return self._sightings[name]

    def item_names(self) -> list[str]:
        """Every item of a complete run, in order; the names are pytest's node ids."""
        names = [f"audit::test_precondition[{condition.__name__}]" for condition in PRECONDITIONS]
        names += [f"audit::test_anomaly_index[{item_id(*item)}]" for item in self.items]
        names += [f"audit::test_false_negative_rate[{name}]" for name in FILTERS]
        names += [
            f"audit::{test}[{method.name}]"
            for test in ("test_attack_success_rate_after", "test_clean_accuracy_drop")
            for method in self.mitigations
        ]
        names += [f"audit::test_power[{canary.name}]" for canary in CANARIES if self.options.canary]
        return names

    def judge_all(self) -> Iterator[tuple[str, Finding | str]]:
        """Every item with its finding, or with the reason why it was skipped: what a pytest run does, without pytest."""
        limits = self.options.limits
        names = iter(self.item_names())
        for condition in PRECONDITIONS:
            yield next(names), self.preconditions[condition.__name__]
        for detector, target in self.items:
            detection = self.detection(detector)
            yield next(names), detection.judge(target, limits, index=self.options.index, name=self.class_name(target))
        for name in FILTERS:
            yield next(names), self.filtering(name)
        for judgement in (judge_success, judge_drop):
            for method in self.mitigations:
                reason = self.no_repair or not_applicable(self.repair(method.name))
                yield next(names), reason or judgement(self.repair(method.name), limits)
        for canary in CANARIES if self.options.canary else ():
            suspicion_stops = self.options.inconclusive == "fail"
            yield next(names), judge_power(self.sightings(canary.name), allow_suspected=suspicion_stops)

    def sections(self) -> dict[str, Any]:
        """What was computed so far, as the record keeps it; a part of an unfinished run is there as well."""
        return {
            "subject": self.subject(),
            "environment": self.environment(),
            "detections": {
                name: {**detection.summary(), "recalled": name in self.recalled}
                for name, detection in self._detections.items()
            },
            "repairs": {
                f"{name}-class_{outcome.target_class}": outcome.summary()
                for name, outcomes in self._repairs.items()
                for outcome in outcomes
            },
            "canaries": {
                f"{name}-class_{sighting.target_class}": sighting.summary()
                for name, sightings in self._sightings.items()
                for sighting in sightings
            },
        }


def _no_answer(detector: Detector, reason: str) -> Detection:
    """A detection that could not be made."""
    return Detection(
        detector=detector.name,
        settings=repr(detector),
        scores=(),
        triggers=(),
        inconclusive=reason,
        blind_spots=detector.blind_spots,
    )


def detectors_of(options: AuditOptions, null: SteeringNull) -> tuple[Detector, ...]:
    """The detectors of a profile with the effort that the options ask for.

    ``quick`` leaves out those that need twins; ``thorough`` searches every class in full, from two starts at least.
    """

    def adapted(entry: Detector) -> Detector:
        if not isinstance(entry, NeuralCleanse):
            return replace(entry, null=null)
        searched = replace(entry, steps=options.steps, restarts=options.restarts)
        if options.profile == "thorough":
            searched = replace(searched, restarts=max(2, options.restarts), race_above=NO_RACE)
        return searched

    return tuple(adapted(entry) for entry in DETECTORS if options.profile != "quick" or not entry.needs_twins)


def item_id(detector: str, target: int | None) -> str:
    """How an item that asks for an anomaly index is called between its brackets."""
    row = "all_to_all" if target is None else f"class_{target}"
    return f"{detector}-from_{row}" if detector == "source_scan" else f"{detector}-{row}"


def not_applicable(outcomes: tuple[Outcome, ...]) -> str:
    """Why a method could not be tried on this network, or an empty string."""
    return next((outcome.not_applicable for outcome in outcomes if outcome.not_applicable), "")


def _digest(trigger: AnyTrigger) -> str:
    content = torch.cat([tensor.flatten() for tensor in trigger.tensors().values()]).float().numpy().tobytes()
    return hashlib.sha256(content + str(trigger.target_class).encode()).hexdigest()

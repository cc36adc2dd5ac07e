"""One audit of one model: loads, detects and repairs once, and remembers finished work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch

from backdoor_audit import progress
from backdoor_audit.canary import Canary, Sighting, canary_targets, ladder
from backdoor_audit.detectors import DETECTORS, Detection
from backdoor_audit.errors import AuditError, BudgetSpentError
from backdoor_audit.evidence import Finding, Verdict
from backdoor_audit.filters import FilterRates, filter_rates
from backdoor_audit.model import surroundings
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs import (
    Repair,
    RepairOutcome,
    against_all,
)
from backdoor_audit.run import others
from backdoor_audit.run.asked import Asked
from backdoor_audit.run.exhibits import activation_exhibit, exhibit
from backdoor_audit.store import Packed, generator_for
from backdoor_audit.triggers.trigger import AnyTrigger

Result = TypeVar("Result")

_SHOWN_CLASSES = 100  # of models with more, only some triggers that are not a pass are shown: pages must open
_MOST_SHOWN = 20  # of those, for each detector: the ones that stand out most


@dataclass(eq=False)
class Audit(Asked):
    """A run over one subject. Everything is computed when first asked for, and kept."""

    _repairs: dict[str, tuple[RepairOutcome, ...]] = field(default_factory=dict)
    _sightings: dict[str, tuple[Sighting, ...]] = field(default_factory=dict)
    _filterings: dict[str, tuple[FilterRates, ...]] = field(default_factory=dict)
    _remembered: dict[str, Any] = field(default_factory=dict)
    _shown: dict[str, dict[str, Any]] = field(default_factory=lambda: {"exhibits": {}, "activations": {}})
    _seen: set[int] = field(default_factory=set)
    _least: dict[str, float] = field(default_factory=dict)
    _taken: set[tuple[str, str]] = field(default_factory=set)

    def kept(self, name: str, work: Callable[[], Result]) -> Result:
        """What some work of a question gave, which is done once in this process."""
        if name not in self._remembered:
            self._remembered[name] = work()
        kept: Result = self._remembered[name]
        return kept

    @cached_property
    def triggers(self) -> tuple[AnyTrigger, ...]:
        """What repairs work against: the known trigger if one was given, else those of the flagged classes."""
        if self.known_trigger is not None:
            return (self.known_trigger,)
        return self.triggers_found()

    @cached_property
    def no_trigger(self) -> str:
        """Why there is nothing to take out or to filter, or an empty string."""
        if self.unmet:
            return self.unmet
        return "" if self.triggers else "no trigger that a repair can work against was flagged"

    @cached_property
    def no_repair(self) -> str:
        """Why no repair is tried, or an empty string; ``repairs=always`` tries them where nothing was flagged as well."""
        if self.options.repairs != "always" or self.known_trigger is not None or self.unmet:
            return self.no_trigger
        found = bool(self.triggers) or any(self.detection(entry.name).triggers for entry in self.detectors)
        return "" if found else "no search of this run gives a trigger that a repair can work against"

    @cached_property
    def repairs(self) -> tuple[Repair, ...]:
        """The repairs of the profile: those that work against a trigger; ``thorough`` tries those that need none as well."""
        return tuple(
            entry for entry in self.catalogue.repairs if entry.needs_trigger or self.options.profile == "thorough"
        )

    def repair(self, name: str) -> tuple[RepairOutcome, ...]:
        """How one method repairs a copy of the model, and how each trigger fares in it."""
        if name not in self._repairs:
            method = next(entry for entry in self.repairs if entry.name == name)
            triggers, beside = self.triggers or (self.likeliest_trigger(),), self.triggers_beside()
            plugin = self.catalogue.plugin(method)

            def work() -> tuple[RepairOutcome, ...]:
                generator = generator_for(self.options.seed, name)
                model = self.classifier.copy() if plugin else self.classifier
                return against_all(method, Subject(model, *self.split), triggers, generator=generator, also=beside)[1]

            def kept() -> tuple[RepairOutcome, ...]:
                with self.once(f"the repair by {name}"):
                    return self.store.recall(
                        {
                            **self._parts,
                            "method": method,
                            "triggers": [_digest(trigger) for trigger in (*triggers, *beside)],
                            **({"plugin": plugin} if plugin else {}),
                        },
                        work,
                        pack=lambda outcomes: Packed({}, {"outcomes": [outcome.summary() for outcome in outcomes]}),
                        unpack=lambda packed: tuple(map(RepairOutcome.of, packed.values["outcomes"])),
                    )[0]

            self._repairs[name] = others.outcomes_of(self, method, plugin, kept) if plugin else kept()
        return self._repairs[name]

    def show_trigger(self, finding: Finding) -> dict[str, Any]:
        """Prepare the trigger behind a finding, for `take_shown`; its exhibit, empty where there is none."""
        detection = self.detection(finding.item.asked_of)
        (trigger, source), flagged = detection.shown(finding), finding.verdict is not Verdict.PASS
        if self.num_classes <= _SHOWN_CLASSES:
            wanted = flagged or detection.detector == DETECTORS[0].name
        else:
            wanted = flagged and finding.value is not None and finding.value >= self._least_shown(detection)
        if trigger is None or not wanted:
            return {}
        with surroundings.gradients():
            shown = exhibit(
                self.classifier, self.split[1], trigger, detector=detection.detector, examples=flagged, source=source
            )
        self._shown["exhibits"][finding.item.brackets] = shown
        return dict(shown)

    def show_activations(self) -> None:
        """Prepare, for `take_shown`, where the network looks at images stamped with each trigger that a remedy is for."""
        if not self.no_trigger:
            with surroundings.gradients():
                for trigger in self.triggers[:_MOST_SHOWN]:
                    self._show_activations(trigger)

    def _least_shown(self, detection: Detection) -> float:
        """The index from which on the triggers of this detector are shown, where there are too many classes to show all."""
        if detection.detector not in self._least:
            values = sorted((row.judged_index(self.options.index) or 0.0 for row in detection.scores), reverse=True)
            self._least[detection.detector] = values[min(_MOST_SHOWN, len(values)) - 1]
        return self._least[detection.detector]

    def _show_activations(self, trigger: AnyTrigger) -> None:
        target, known = trigger.target_class, self.known_trigger
        if target in self._seen:
            return
        searched = self._detections.get(DETECTORS[0].name)
        found = trigger if known is None else searched.trigger(target) if searched else None
        shown = activation_exhibit(self.classifier, self.split[1], found, known)
        self._shown["activations"][f"class_{target}"] = shown
        self._seen.add(target)

    def take_shown(self) -> dict[str, dict[str, Any]]:
        """The record's ``exhibits`` and ``activations`` that were prepared since the last call; pictures travel once."""
        taken = {name: dict(entries) for name, entries in self._shown.items()}
        for entries in self._shown.values():
            entries.clear()
        return taken

    def not_applicable(self, name: str) -> str:
        """Why a repair could not be tried on this network, or an empty string; it is tried now."""
        return next((entry.not_applicable for entry in self.repair(name) if entry.not_applicable), "")

    def filtering(self, name: str) -> tuple[FilterRates, ...] | str:
        """How one filter does on each trigger, or why it could not be tried."""
        if self.no_trigger:
            return self.no_trigger
        if name not in self._filterings:
            subject = Subject(self.classifier, *self.split)
            method = next(entry for entry in self.catalogue.filters if entry.name == name)
            rates = []
            with progress.piece(f"the filter {name}"):
                for trigger in self.triggers:
                    generator = generator_for(self.options.seed, f"filter:{name}:{trigger.target_class}")
                    try:
                        filter_ = method(subject, trigger, generator=generator)
                    except BudgetSpentError:
                        raise
                    except AuditError as error:
                        return str(error)
                    rates.append(filter_rates(filter_, self.classifier, subject.held_out, trigger))
            self._filterings[name] = tuple(rates)
        return self._filterings[name]

    @cached_property
    def canaries(self) -> tuple[Canary, ...]:
        """The kinds of canaries that this run plants: those that a detector of its profile is made for; none unless asked for."""
        return tuple(
            entry for entry in self.catalogue.canaries if self.options.canary and entry.has_detector(self.telling)
        )

    def sightings(self, name: str) -> tuple[Sighting, ...]:
        """What the detectors make of one kind of canary: class by class and dose by dose, each in a fresh copy."""
        if name not in self._sightings:
            canary = next(entry for entry in self.catalogue.canaries if entry.name == name)
            doses = canary.doses_for(self.classifier.image_shape)
            self._sightings[name] = tuple(
                sighting
                for target in canary_targets(self.num_classes, self.options.canary_targets, self.options.seed)
                for sighting in ladder(
                    doses, partial(self._sighting, canary, target), allow_suspected=self._suspicion_stops
                )
            )
        return self._sightings[name]

    def _sighting(self, canary: Canary, target: int, dose: float) -> Sighting:
        """One dose of a canary: from the store if it is there; planted and searched for if there is time left."""
        options, nothing = self.options, canary.sighting(target, dose)
        if self.unmet:
            return replace(nothing, tried=False, reason=self.unmet)

        def work() -> Sighting:
            return canary(
                Subject(self.classifier, *self.split),
                target,
                dose,
                search=self.search,
                detectors=self.telling,
                limits=self.limits,
                index=options.index,
                seed=options.seed,
            )

        judged = (canary, self.telling, self.reference or "shipped", self.limits, options.index)
        try:
            with self.in_budget(), self.once(f"the search for a {nothing.called} for class {target}"):
                return self.store.recall(
                    {**self._parts, "canary": judged, "target": target, "dose": dose},
                    work,
                    pack=Sighting.pack,
                    unpack=Sighting.unpack,
                )[0]
        except BudgetSpentError as error:
            return replace(nothing, tried=False, reason=str(error))

    @property
    def _suspicion_stops(self) -> bool:
        return self.options.inconclusive == "fail"

    def forewarned(self) -> list[str]:
        """What to know before a long wait: what was not read, what this run cannot judge, how long it takes to begin."""
        lines = [f"clean images: {note}" for note in self.clean_set.notes]
        if self.module is None and not self.options.model:
            return lines
        silent = [entry.name for entry in self.detectors if self.too_few(entry)]
        if silent:
            judged = [*(entry.name for entry in self.telling), *(wanted.name for wanted in self.properties)]
            lines.append(
                f"{self.num_classes} classes are too few to compare with each other: {', '.join(silent)} are not searched, "
                f"and the run ends inconclusive; judged are the preconditions, {', '.join(judged)}, and repairs of a trigger "
                "that these find or --audit-trigger gives"
            )
        slow = self.slowness()
        return [*lines, slow] if slow else lines

    def sections(self) -> dict[str, Any]:
        """What was computed so far, as the record keeps it; a part of an unfinished run is there as well."""
        return self._sections(set())

    def take_sections(self) -> dict[str, Any]:
        """The same without what an earlier call gave, and with `take_shown`: gathered over a run, every entry travels once."""
        return {**self._sections(self._taken), **self.take_shown()}

    def _sections(self, taken: set[tuple[str, str]]) -> dict[str, Any]:
        """What was computed and is not ``taken`` yet, which it is from now on."""

        def fresh(section: str, kept: Collection[str]) -> list[str]:
            names = [name for name in kept if (section, name) not in taken]
            taken.update((section, name) for name in names)
            return names

        subject = {"subject": self.subject(), "environment": self.environment()} if fresh("subject", ("model",)) else {}
        return {
            **subject,
            "detections": {
                name: {**self._detections[name].summary(), "recalled": name in self.recalled}
                for name in fresh("detections", self._detections)
            },
            "properties": {name: self.answer(name) for name in fresh("properties", self._asked)},
            "repairs": {
                f"{name}-class_{outcome.target_class}": outcome.summary()
                for name in fresh("repairs", [entry for entry in self._repairs if self.catalogue.counts(entry)])
                for outcome in self._repairs[name]
            },
            "sections": {
                question.name: entries for question in self.suite.questions if (entries := question.section(self))
            },
            "canaries": {
                f"{name}-class_{sighting.target_class}-dose_{sighting.dose:g}": sighting.summary()
                for name in fresh("canaries", self._sightings)
                for sighting in self._sightings[name]
            },
        }


def _digest(trigger: AnyTrigger) -> str:
    content = torch.cat([tensor.flatten() for tensor in trigger.tensors().values()]).float().numpy().tobytes()
    return hashlib.sha256(content + str(trigger.target_class).encode()).hexdigest()

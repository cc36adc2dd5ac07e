"""The properties asked of a subject: searches, counterexamples of earlier runs, what twins show; each computed once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from backdoor_audit.detectors.detection import contradicting
from backdoor_audit.errors import AuditError, BudgetSpentError, OptionError
from backdoor_audit.evidence import STEERED, Verdict
from backdoor_audit.model.subject import Subject
from backdoor_audit.properties import (
    Counterexample,
    Property,
    PropertyOutcome,
    SearchedProperty,
    corpus_folder,
    keep,
    load_corpus,
    pasted_test,
    unanswered,
)
from backdoor_audit.run import others
from backdoor_audit.run.exhibits import exhibit
from backdoor_audit.run.searches import Searched, same
from backdoor_audit.store import Packed, generator_for
from backdoor_audit.triggers.trigger import AnyTrigger

_LOADING = ("arch", "mean", "std", "normalization")


@dataclass(eq=False)
class Asked(Searched):
    """A subject with its detectors and properties.

    ``given_corpus`` takes the place of the folder with counterexamples, which is then neither read nor written.
    """

    given_corpus: tuple[Counterexample, ...] | None = None
    _asked: dict[str, PropertyOutcome] = field(default_factory=dict)
    other_outcomes: dict[str, PropertyOutcome] = field(default_factory=dict)
    _stamped: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def check(self) -> None:
        """Load everything that a user can get wrong, the corpus as well. Raises `AuditError`."""
        _ = self.corpus
        super().check()

    @cached_property
    def properties(self) -> tuple[Property, ...]:
        """The properties of the profile: ``quick`` leaves out those that need twins."""
        return self._of_profile(self.catalogue.ours("properties"))

    @cached_property
    def other_properties(self) -> tuple[Property, ...]:
        """Those that other packages bring: they answer their own items, and nothing else of a run goes by them."""
        return self._of_profile(self.catalogue.others("properties"))

    @property
    def all_properties(self) -> tuple[Property, ...]:
        """Those of which a run has items."""
        return (*self.properties, *self.other_properties)

    @cached_property
    def corpus(self) -> tuple[Counterexample, ...]:
        """Counterexamples of earlier runs. Raises `DataFormatError` for a folder with files that are none."""
        with self.reading():
            return load_corpus(self._corpus_folder) if self.given_corpus is None else self.given_corpus

    @property
    def _corpus_folder(self) -> Path | None:
        return None if self.given_corpus is not None else corpus_folder(self.options.corpus, Path())

    def natural_rate(self, wanted: Property, target_class: int) -> float:
        """What the twins show of a class to a property, from the store if it is there; 0 for one that asks for nothing."""
        if not isinstance(wanted, SearchedProperty):
            return 0.0

        def work() -> Packed:
            generator = generator_for(self.options.seed, f"twins:{wanted.name}:{target_class}")
            twins = [Subject(twin, *self.split) for twin in self.twins.classifiers]
            rate = wanted.natural(twins, target_class, generator=generator)
            return Packed({}, {"rate": rate})

        parts = {"natural rate": wanted, "class": target_class}
        packed = self.beside_twins(parts, work, pack=lambda packed: packed, unpack=lambda packed: packed)
        return float(packed.values["rate"])

    def asked(self, name: str) -> PropertyOutcome:
        """What came of one property; inconclusive without a search if a precondition does not hold, or without twins."""
        other = next((entry for entry in self.other_properties if entry.name == name), None)
        if other is not None:
            return others.outcome_of(self, other)
        if name not in self._asked:
            wanted = next(entry for entry in self.properties if entry.name == name)
            self._asked[name] = outcome = self._weighed(self._ask(wanted))
            found, folder = Counterexample.of(outcome, self.classifier.image_shape), self._corpus_folder
            if found is not None and folder is not None and not outcome.replayed:
                try:
                    keep(folder, found)
                except OptionError as error:
                    self.store.told.append(str(error))
        return self._asked[name]

    def _weighed(self, outcome: PropertyOutcome) -> PropertyOutcome:
        """The outcome, and what speaks against the hidden trigger that a new counterexample would mean.

        A counterexample of an earlier run was kept to be held against later models, whatever else is found in them.
        """
        if outcome.verdict is not Verdict.FAIL or outcome.statistic != STEERED or outcome.replayed:
            return outcome
        beside = [self.detection(entry.name) for entry in self.detectors if entry.needs_twins]
        return replace(outcome, contradicted=contradicting(beside, outcome.target_class, self.limits))

    def _ask(self, wanted: Property) -> PropertyOutcome:
        if unmet := self.unmet:
            return unanswered(wanted, unmet)
        kept = self._kept(wanted)

        def work() -> PropertyOutcome:
            generator = generator_for(self.options.seed, wanted.name)
            natural = partial(self.natural_rate, wanted)
            return wanted(Subject(self.classifier, *self.split), generator=generator, natural=natural, kept=kept)

        try:
            with self.in_budget(), self.once(f"the search of {wanted.name}"):
                if wanted.needs_twins and not self.twins.classifiers:
                    return unanswered(wanted, self.twins.reason)
                return self.store.recall(
                    self.property_parts(wanted),
                    work,
                    pack=PropertyOutcome.pack,
                    unpack=PropertyOutcome.unpack,
                )[0]
        except BudgetSpentError as error:
            return unanswered(wanted, str(error))

    def property_parts(self, wanted: Property) -> dict[str, object]:
        """What the search of a property in this model depends on."""
        return {**self._parts, "property": wanted, "corpus": [entry.file_name for entry in self._kept(wanted)]}

    def _kept(self, wanted: Property) -> tuple[Counterexample, ...]:
        return tuple(entry for entry in self.corpus if entry.suits(wanted.name, self.classifier))

    def refuted(self, *names: str) -> tuple[Counterexample, ...]:
        """The counterexamples to these properties, or to all; one that holds, or is not about a trigger, has none."""
        asked = map(self.asked, names or [wanted.name for wanted in self.properties])
        found = (Counterexample.of(outcome, self.classifier.image_shape) for outcome in asked)
        return tuple(entry for entry in found if entry is not None)

    def refuting(self, *names: str) -> tuple[AnyTrigger, ...]:
        """Those, as detectors hand over triggers; a loss of detail has no such form."""
        shaped = [entry.trigger.trigger(entry.image_shape) for entry in self.refuted(*names)]
        return tuple(entry for entry in shaped if isinstance(entry, AnyTrigger))

    def triggers_by(self, name: str) -> tuple[AnyTrigger, ...]:
        """The triggers of the classes that a detector flags, or what refuted a property."""
        if any(entry.name == name for entry in self.detectors):
            return self.detection(name).flagged(self.limits, index=self.options.index)
        return self.refuting(name)

    def triggers_found(self) -> tuple[AnyTrigger, ...]:
        """One trigger for every flagged class; of a class that no detector flags, what refuted a property."""
        found = {trigger.target_class: trigger for trigger in super().triggers_found()}
        for trigger in self.refuting():
            found.setdefault(trigger.target_class, trigger)
        return tuple(found.values())

    def triggers_beside(self) -> tuple[AnyTrigger, ...]:
        """What else is known of the flagged classes: other detectors' triggers that work, and what refuted a property."""
        beside = list(super().triggers_beside())
        if self.known_trigger is None:
            known = (*self.triggers_found(), *beside)
            beside += [entry for entry in self.refuting() if not any(same(entry, other) for other in known)]
        return tuple(beside)

    def answer(self, name: str) -> dict[str, Any]:
        """What the record's ``properties`` say of one that was asked."""
        outcome = self._asked[name]
        return {
            **outcome.summary(self.classifier.image_shape, test=self._test(outcome)),
            "examples": self._examples(name, outcome),
        }

    def _examples(self, name: str, outcome: PropertyOutcome) -> list[dict[str, Any]]:
        """Held-out images before and after stamping a counterexample that stands; none if there is none."""
        if name not in self._stamped:
            drawn = outcome.trigger if outcome.verdict is Verdict.FAIL else None
            trigger = drawn.trigger(self.classifier.image_shape) if drawn else None
            self._stamped[name] = []
            if isinstance(trigger, AnyTrigger):
                with suppress(AuditError):  # a model that fails now has no pictures; what was judged stands
                    self._stamped[name] = exhibit(self.classifier, self.split[1], trigger, detector=name)["examples"]
        return self._stamped[name]

    def _test(self, outcome: PropertyOutcome) -> str | None:
        options, settings = self.options, self.settings()
        given = {key: getattr(options, key) for key in _LOADING if getattr(options, key)}
        return pasted_test(
            outcome,
            model=settings["model"],
            data=settings["data"],
            loading={**given, **({"num_classes": options.classes} if options.classes else {})},
            reading=self._reading_options(),
            resize=(options.resize[0], options.resize[1]) if options.resize else None,
            channels=options.channels or None,
        )

    def _reading_options(self) -> dict[str, Any]:
        """Arguments of `load_clean_set` that decide which label an image has."""
        options, clean = self.options, self.clean_set
        chosen: dict[str, Any] = {"class_order": options.class_order} if options.class_order else {}
        by_names = options.class_names or any("names in the model's file" in note for note in clean.notes)
        return {**chosen, "class_names": clean.class_names} if by_names else chosen

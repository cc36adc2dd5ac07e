"""Properties of the audited model: searches, counterexamples of earlier runs, what twins show; each once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from backdoor_audit.detectors.detection import contradicting
from backdoor_audit.errors import AuditError, BudgetSpentError, OptionError
from backdoor_audit.evidence import STEERED, Limits, Verdict
from backdoor_audit.options import Role, options_with
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
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.kept import Kept
from backdoor_audit.run.reference import ReferenceTwins
from backdoor_audit.run.searches import Searches
from backdoor_audit.run.settings import settings_of
from backdoor_audit.store import Packed, generator_for
from backdoor_audit.triggers.trigger import AnyTrigger


class PropertySearches:
    """The properties of a run, and what came of them.

    ``given_corpus`` takes the place of the folder with counterexamples, which is then neither read nor written.
    """

    def __init__(
        self,
        inputs: Inputs,
        reference: ReferenceTwins,
        searches: Searches,
        limits: Limits,
        given_corpus: tuple[Counterexample, ...] | None,
    ) -> None:
        self.inputs, self.reference, self.searches, self.limits = inputs, reference, searches, limits
        self.given_corpus = given_corpus
        self.done: Kept[PropertyOutcome] = Kept()
        self.of_others_done: Kept[PropertyOutcome] = Kept()
        self._stamped: Kept[list[dict[str, Any]]] = Kept()

    @cached_property
    def ours(self) -> tuple[Property, ...]:
        """The properties of the profile: ``quick`` leaves out those that need twins."""
        return self.inputs.of_profile(self.inputs.catalogue.ours("properties"))

    @cached_property
    def of_others(self) -> tuple[Property, ...]:
        """Those that other packages bring: they answer their own items, and nothing else of a run goes by them."""
        return self.inputs.of_profile(self.inputs.catalogue.others("properties"))

    @property
    def every(self) -> tuple[Property, ...]:
        """Those of which a run has items."""
        return (*self.ours, *self.of_others)

    @cached_property
    def corpus(self) -> tuple[Counterexample, ...]:
        """Counterexamples of earlier runs. Raises `DataFormatError` for a folder with files that are none."""
        with self.inputs.reading():
            return load_corpus(self._corpus_folder) if self.given_corpus is None else self.given_corpus

    @property
    def _corpus_folder(self) -> Path | None:
        return None if self.given_corpus is not None else corpus_folder(self.inputs.options.corpus, Path())

    def natural_rate(self, claim: Property, target_class: int) -> float:
        """What the twins show of a class to a property, from the store if it is there; 0 for one that asks for nothing.

        Without twins nothing is natural; what speaks against a counterexample is then that no detector finds anything.
        """
        if not (isinstance(claim, SearchedProperty) and self.reference.twins.classifiers):
            return 0.0

        def work() -> float:
            generator = generator_for(self.inputs.options.seed, f"twins:{claim.name}:{target_class}")
            twins = [self.inputs.subject.of(twin) for twin in self.reference.twins.classifiers]
            return claim.natural(twins, target_class, generator=generator)

        parts = {"natural rate": claim, "class": target_class}
        return self.reference.recall(parts, work, pack=lambda rate: Packed({}, {"rate": rate}), unpack=_rate)

    def outcome(self, name: str) -> PropertyOutcome:
        """What came of one property; inconclusive without a search where nothing could be asked."""
        other = next((entry for entry in self.of_others if entry.name == name), None)
        if other is not None:
            return others.outcome_of(self, other)
        return self.done.once(name, lambda: self._kept_counterexample(self._weighed(self._ask(self._claim(name)))))

    def _claim(self, name: str) -> Property:
        return next(entry for entry in self.ours if entry.name == name)

    def _kept_counterexample(self, outcome: PropertyOutcome) -> PropertyOutcome:
        """The same outcome; a new counterexample is kept for later models, if there is a folder for them."""
        found, folder = Counterexample.of(outcome, self.inputs.classifier.image_shape), self._corpus_folder
        if found is not None and folder is not None and not outcome.replayed:
            try:
                keep(folder, found)
            except OptionError as error:
                self.inputs.store.told.append(str(error))
        return outcome

    def _weighed(self, outcome: PropertyOutcome) -> PropertyOutcome:
        """The outcome, and what speaks against the hidden trigger that a new counterexample would mean.

        A counterexample of an earlier run was kept to be held against later models, whatever else is found in them.
        """
        if outcome.verdict is not Verdict.FAIL or outcome.statistic != STEERED or outcome.replayed:
            return outcome
        beside = [self.searches.detection(entry.name) for entry in self.searches.detectors if entry.needs_twins]
        return replace(outcome, contradicted=contradicting(beside, outcome.target_class, self.limits))

    def _ask(self, claim: Property) -> PropertyOutcome:
        if unmet := self.inputs.unmet:
            return unanswered(claim, unmet)
        kept = self._kept(claim)

        def work() -> PropertyOutcome:
            generator = generator_for(self.inputs.options.seed, claim.name)
            natural = partial(self.natural_rate, claim)
            return claim(self.inputs.subject, generator=generator, natural=natural, kept=kept)

        try:
            with self.inputs.in_budget(), self.inputs.once(f"the search of {claim.name}"):
                if claim.needs_twins and self.reference.nothing:
                    return unanswered(claim, self.reference.nothing)
                return self.inputs.store.recall(
                    self.parts(claim),
                    work,
                    pack=PropertyOutcome.pack,
                    unpack=PropertyOutcome.unpack,
                )[0]
        except BudgetSpentError as error:
            return unanswered(claim, str(error))

    def parts(self, claim: Property) -> dict[str, object]:
        """What the search of a property in this model depends on."""
        return {**self.inputs.parts, "property": claim, "corpus": [entry.file_name for entry in self._kept(claim)]}

    def _kept(self, claim: Property) -> tuple[Counterexample, ...]:
        return tuple(entry for entry in self.corpus if entry.suits(claim.name, self.inputs.classifier))

    def refuted(self, *names: str) -> tuple[Counterexample, ...]:
        """The counterexamples to these properties, or to all; one that holds, or is not about a trigger, has none."""
        asked = map(self.outcome, names or [claim.name for claim in self.ours])
        found = (Counterexample.of(outcome, self.inputs.classifier.image_shape) for outcome in asked)
        return tuple(entry for entry in found if entry is not None)

    def refuting(self, *names: str) -> tuple[AnyTrigger, ...]:
        """Those, as detectors hand over triggers; a loss of detail has no such form."""
        shaped = [entry.trigger.trigger(entry.image_shape) for entry in self.refuted(*names)]
        return tuple(entry for entry in shaped if isinstance(entry, AnyTrigger))

    def summary(self, name: str) -> dict[str, Any]:
        """What the record's ``properties`` say of one that was asked."""
        outcome = self.done[name]
        return {
            **outcome.summary(self.inputs.classifier.image_shape, test=self._test(outcome)),
            "examples": self._examples(name, outcome),
        }

    def _examples(self, name: str, outcome: PropertyOutcome) -> list[dict[str, Any]]:
        """Held-out images before and after stamping a counterexample that stands; none if there is none."""

        def stamped() -> list[dict[str, Any]]:
            written = outcome.trigger if outcome.verdict is Verdict.FAIL else None
            trigger = written.trigger(self.inputs.classifier.image_shape) if written else None
            if isinstance(trigger, AnyTrigger):
                subject = self.inputs.subject
                with suppress(AuditError):  # a model that fails now has no pictures; what was judged stands
                    return list(exhibit(subject.classifier, subject.held_out, trigger, detector=name)["examples"])
            return []

        return self._stamped.once(name, stamped)

    def _test(self, outcome: PropertyOutcome) -> str | None:
        options, settings = self.inputs.options, settings_of(self.inputs.options, self.limits)
        given = {key: getattr(options, key) for key in options_with(Role.LOADING) if getattr(options, key)}
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
        options, clean = self.inputs.options, self.inputs.clean_set
        chosen: dict[str, Any] = {"class_order": options.class_order} if options.class_order else {}
        by_names = options.class_names or any("names in the model's file" in note for note in clean.notes)
        return {**chosen, "class_names": clean.class_names} if by_names else chosen


def _rate(packed: Packed) -> float:
    """What the twins show, as it was kept. Raises `ValueError` for what is no rate: nothing is beyond one above 1."""
    rate = float(packed.values["rate"])
    if not 0 <= rate <= 1:
        raise ValueError(f"{rate} where a rate belongs")
    return rate

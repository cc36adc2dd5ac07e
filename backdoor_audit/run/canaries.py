"""Known backdoors in copies of the audited model, and what the detectors make of them; each dose is planted once."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial

from backdoor_audit.canary import Canary, Sighting, canary_targets, ladder
from backdoor_audit.errors import BudgetSpentError
from backdoor_audit.evidence import Limits
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.kept import Kept
from backdoor_audit.run.reference import ReferenceTwins
from backdoor_audit.run.searches import Searches


class CanaryRuns:
    """The canaries that a run plants."""

    def __init__(self, inputs: Inputs, reference: ReferenceTwins, searches: Searches, limits: Limits) -> None:
        self.inputs, self.reference, self.searches, self.limits = inputs, reference, searches, limits
        self.done: Kept[tuple[Sighting, ...]] = Kept()

    @cached_property
    def kinds(self) -> tuple[Canary, ...]:
        """Those that a detector of the profile is made for; none unless they are asked for."""
        options, telling = self.inputs.options, self.searches.telling
        return tuple(
            entry for entry in self.inputs.catalogue.canaries if options.canary and entry.has_detector(telling)
        )

    def sightings(self, name: str) -> tuple[Sighting, ...]:
        """What the detectors make of one kind: class by class and dose by dose, each in a fresh copy."""
        return self.done.once(name, lambda: self._tried(name))

    def _tried(self, name: str) -> tuple[Sighting, ...]:
        inputs, options = self.inputs, self.inputs.options
        canary = next(entry for entry in inputs.catalogue.canaries if entry.name == name)
        doses, stops = canary.doses_for(inputs.classifier.image_shape), options.inconclusive == "fail"
        return tuple(
            sighting
            for target in canary_targets(inputs.num_classes, options.canary_targets, options.seed)
            for sighting in ladder(doses, partial(self._sighting, canary, target), allow_suspected=stops)
        )

    def _sighting(self, canary: Canary, target: int, dose: float) -> Sighting:
        """One dose: from the store if it is there; planted and searched for if there is time left."""
        inputs, options, nothing = self.inputs, self.inputs.options, canary.sighting(target, dose)
        if inputs.unmet:
            return replace(nothing, tried=False, reason=inputs.unmet)

        def work() -> Sighting:
            return canary(
                inputs.subject,
                target,
                dose,
                search=self.searches.search,
                detectors=self.searches.telling,
                limits=self.limits,
                index=options.index,
                seed=options.seed,
            )

        judged = (canary, self.searches.telling, self.reference.own_null or "shipped", self.limits, options.index)
        try:
            with inputs.in_budget(), inputs.once(f"the search for a {nothing.called} for class {target}"):
                return inputs.store.recall(
                    {**inputs.parts, "canary": judged, "target": target, "dose": dose},
                    work,
                    pack=Sighting.pack,
                    unpack=Sighting.unpack,
                )[0]
        except BudgetSpentError as error:
            return replace(nothing, tried=False, reason=str(error))

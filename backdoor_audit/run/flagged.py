"""The triggers that this run has found: of which classes, what else is known of these, and what remedies work against."""

from __future__ import annotations

from functools import cached_property

import torch

from backdoor_audit.evidence import Limits
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.properties import PropertySearches
from backdoor_audit.run.searches import Searches
from backdoor_audit.triggers.trigger import AnyTrigger


class FlaggedTriggers:
    """Triggers of flagged classes, from detections and from properties that were refuted."""

    def __init__(self, inputs: Inputs, searches: Searches, properties: PropertySearches, limits: Limits) -> None:
        self.inputs, self.searches, self.properties, self.limits = inputs, searches, properties, limits

    @cached_property
    def triggers(self) -> tuple[AnyTrigger, ...]:
        """What remedies work against: the known trigger if one was given, else those of the flagged classes."""
        return self.found() if self.inputs.known_trigger is None else (self.inputs.known_trigger,)

    @cached_property
    def none(self) -> str:
        """Why there is nothing to take out or to filter, or an empty string."""
        if self.inputs.unmet:
            return self.inputs.unmet
        return "" if self.triggers else "no trigger that a repair can work against was flagged"

    @cached_property
    def none_at_all(self) -> str:
        """Why no repair is tried, or an empty string; ``repairs=always`` tries them where nothing was flagged as well."""
        if self.inputs.options.repairs != "always" or self.inputs.known_trigger is not None or self.inputs.unmet:
            return self.none
        searches = self.searches
        found = bool(self.triggers) or any(searches.detection(entry.name).triggers for entry in searches.detectors)
        return "" if found else "no search of this run gives a trigger that a repair can work against"

    def by(self, name: str) -> tuple[AnyTrigger, ...]:
        """The triggers of the classes that a detector flags, or what refuted a property."""
        if any(entry.name == name for entry in self.searches.detectors):
            return self.searches.detection(name).flagged(self.limits, index=self.inputs.options.index)
        return self.properties.refuting(name)

    def found(self) -> tuple[AnyTrigger, ...]:
        """One trigger for every flagged class: that of the detector in which the class stands out most.

        Of a class that no detector flags it is what refuted a property.
        """
        best: dict[int, tuple[float, AnyTrigger]] = {}
        for entry in self.searches.detectors:
            detection = self.searches.detection(entry.name)
            for trigger in detection.flagged(self.limits, index=self.inputs.options.index):
                score = detection.score(trigger.target_class)
                index = (score.index if score else None) or 0.0
                if trigger.target_class not in best or index > best[trigger.target_class][0]:
                    best[trigger.target_class] = (index, trigger)
        found = {target: trigger for target, (_, trigger) in best.items()}
        for trigger in self.properties.refuting():
            found.setdefault(trigger.target_class, trigger)
        return tuple(found.values())

    def beside(self) -> tuple[AnyTrigger, ...]:
        """What else is known of the flagged classes: other detectors' triggers that work there, and what refuted a property.

        None beside a known trigger. No search sees the attacker's own trigger, and each sees another part of what it left.
        """
        if self.inputs.known_trigger is not None:
            return ()
        found, beside = self.found(), list[AnyTrigger]()
        for target in [trigger.target_class for trigger in found]:
            for detection in [self.searches.detection(entry.name) for entry in self.searches.detectors]:
                score, other = detection.score(target), detection.trigger(target)
                works = score is not None and score.success_val >= self.limits.steering_success
                if works and other is not None and not any(same(other, known) for known in (*found, *beside)):
                    beside.append(other)
        known = (*found, *beside)
        return (*beside, *(entry for entry in self.properties.refuting() if not any(same(entry, one) for one in known)))

    def likeliest(self) -> AnyTrigger:
        """The trigger that comes closest to being flagged, by its index, of the first detector that has any."""
        for entry in self.searches.detectors:
            detection = self.searches.detection(entry.name)
            if detection.triggers:
                scores = {score.target_class: score.index for score in detection.scores}
                return max(detection.triggers, key=lambda trigger: scores[trigger.target_class] or 0.0)
        raise ValueError("no detector of this run gives triggers")


def same(one: AnyTrigger, other: AnyTrigger) -> bool:
    """Whether two triggers are of one kind and consist of equal numbers."""
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)

"""What a person can check by eye, prepared for the record: triggers, stamped images, where the network looks."""

from __future__ import annotations

from typing import Any

from backdoor_audit.detectors import DETECTORS, Detection
from backdoor_audit.evidence import Finding, Verdict
from backdoor_audit.model import surroundings
from backdoor_audit.run.exhibits import activation_exhibit, exhibit
from backdoor_audit.run.flagged import FlaggedTriggers
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.searches import Searches
from backdoor_audit.triggers.trigger import AnyTrigger

_SHOWN_CLASSES = 100  # of models with more, only some triggers that are not a pass are shown: pages must open
_MOST_SHOWN = 20  # of those, for each detector: the ones that stand out most


class Pictures:
    """The ``exhibits`` and ``activations`` of a record, gathered until somebody takes them."""

    def __init__(self, inputs: Inputs, searches: Searches, flagged: FlaggedTriggers) -> None:
        self.inputs, self.searches, self.flagged = inputs, searches, flagged
        self._shown: dict[str, dict[str, Any]] = {"exhibits": {}, "activations": {}}
        self._seen: set[int] = set()
        self._least: dict[str, float] = {}

    def add_trigger(self, finding: Finding) -> dict[str, Any]:
        """Prepare the trigger behind a finding, for `take`; its exhibit, empty where there is none."""
        detection = self.searches.detection(finding.item.asked_of)
        (trigger, source), flagged = detection.shown(finding), finding.verdict is not Verdict.PASS
        if self.inputs.num_classes <= _SHOWN_CLASSES:
            wanted = flagged or detection.detector == DETECTORS[0].name
        else:
            wanted = flagged and finding.value is not None and finding.value >= self._least_shown(detection)
        if trigger is None or not wanted:
            return {}
        with surroundings.gradients():
            shown = exhibit(
                self.inputs.classifier,
                self.inputs.subject.held_out,
                trigger,
                detector=detection.detector,
                examples=flagged,
                source=source,
            )
        self._shown["exhibits"][finding.item.brackets] = shown
        return dict(shown)

    def add_activations(self) -> None:
        """Prepare, for `take`, where the network looks at images stamped with each trigger that a remedy is for."""
        if not self.flagged.none:
            with surroundings.gradients():
                for trigger in self.flagged.triggers[:_MOST_SHOWN]:
                    self._add_activations(trigger)

    def _least_shown(self, detection: Detection) -> float:
        """The index from which on the triggers of this detector are shown, where there are too many classes to show all."""
        if detection.detector not in self._least:
            values = sorted(
                (row.judged_index(self.inputs.options.index) or 0.0 for row in detection.scores), reverse=True
            )
            self._least[detection.detector] = values[min(_MOST_SHOWN, len(values)) - 1]
        return self._least[detection.detector]

    def _add_activations(self, trigger: AnyTrigger) -> None:
        target, known = trigger.target_class, self.inputs.known_trigger
        if target in self._seen:
            return
        searched = self.searches.done.get(DETECTORS[0].name)
        found = trigger if known is None else searched.trigger(target) if searched else None
        shown = activation_exhibit(self.inputs.classifier, self.inputs.subject.held_out, found, known)
        self._shown["activations"][f"class_{target}"] = shown
        self._seen.add(target)

    def take(self) -> dict[str, dict[str, Any]]:
        """The record's ``exhibits`` and ``activations`` that were prepared since the last call; pictures travel once."""
        taken = {name: dict(entries) for name, entries in self._shown.items()}
        for entries in self._shown.values():
            entries.clear()
        return taken

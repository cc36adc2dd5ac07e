"""A property with a known answer: it does not hold for the backdoored toy."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.properties import PropertyOutcome
from backdoor_audit.triggers.written import Numbers, Patch
from tests.subjects import toy


@dataclass(frozen=True)
class Corner:
    """The property that one white pixel in the last corner, or a kept counterexample, leads no more than half to a class."""

    name = "no_corner_steers"
    needs_twins = False

    def __call__(self, subject, *, generator, natural=(), kept=()):
        shown = Patch(colours=Numbers((1, 1, 1), (255,)), top=7, left=7, target_class=toy.TARGET)
        clean = subject.held_out
        rates = [
            float(attack_success_rate(subject.classifier, clean.images, clean.labels, trigger))
            for trigger in [tried.trigger for tried in kept] or [shown]
        ]
        return PropertyOutcome(
            name=self.name,
            statistic="steered_share",
            value=max(rates),
            limit=0.5,
            reason="",
            target_class=toy.TARGET,
            trigger=shown,
            kept=len(kept),
        )

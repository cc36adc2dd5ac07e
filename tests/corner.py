"""A property with a known answer: it does not hold for the backdoored toy."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.properties import Outcome
from backdoor_audit.triggers.written import Numbers, Patch
from tests.plugin import toy


@dataclass(frozen=True)
class Corner:
    """The property that one white pixel in the last corner, or a kept counterexample, leads no more than half to a class."""

    name = "no_corner_steers"
    needs_twins = False

    def __call__(self, classifier, opt, val, *, generator, natural=(), kept=()):
        shown = Patch(colours=Numbers((1, 1, 1), (255,)), top=7, left=7, target_class=toy.TARGET)
        rates = [attack_success_rate(classifier, val.images, val.labels, tried.trigger) for tried in kept]
        rate = max([float(rate) for rate in rates] or [attack_success_rate(classifier, val.images, val.labels, shown)])
        return Outcome(
            name=self.name,
            statistic="steered_share",
            value=float(rate),
            limit=0.5,
            reason="",
            target_class=toy.TARGET,
            trigger=shown,
            kept=len(kept),
        )

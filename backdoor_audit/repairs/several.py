"""One repaired copy for all triggers that were found, and how each of them fares in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.outcome import Outcome, Repair, RepairResult, judged_by, score
from backdoor_audit.triggers.trigger import AnyTrigger


@runtime_checkable
class Joint(Repair, Protocol):
    """A repair that takes several triggers at once."""

    def together(
        self,
        classifier: Classifier,
        opt: CleanSet,
        val: CleanSet,
        triggers: Sequence[AnyTrigger],
        *,
        generator: torch.Generator,
    ) -> RepairResult:
        """A copy repaired against all triggers; the outcome is about the first."""
        ...


def against_all(
    method: Repair,
    classifier: Classifier,
    opt: CleanSet,
    val: CleanSet,
    triggers: Sequence[AnyTrigger],
    *,
    generator: torch.Generator,
    also: Sequence[AnyTrigger] = (),
) -> tuple[Classifier | None, tuple[Outcome, ...]]:
    """One copy repaired against all ``triggers`` and one outcome per trigger; no copy if the method is not applicable.

    A method that takes several triggers gets them in one go, those of ``also`` after them, which are not judged. One that
    takes a single trigger is applied to its own result, trigger by trigger; curves are those of each step. One that needs
    none runs once. Scores are those of the last copy on ``val``, beside the classifier's own.
    """
    if isinstance(method, Joint):
        result = method.together(classifier, opt, val, (*triggers, *also), generator=generator)
        return _judged(result, classifier, val, triggers)
    if not method.needs_trigger:
        return _judged(method(classifier, opt, val, triggers[0], generator=generator), classifier, val, triggers)
    repaired, steps = classifier, []
    for trigger in triggers:
        result = method(repaired, opt, val, trigger, generator=generator)
        if result.classifier is None:
            return _judged(result, classifier, val, triggers)
        repaired = result.classifier
        steps.append(result.outcome)
    if len(triggers) == 1:
        return repaired, tuple(steps)
    return repaired, tuple(
        replace(step, before=score(classifier, val, trigger), after=score(repaired, val, trigger))
        for step, trigger in zip(steps, triggers, strict=True)
    )


def _judged(
    result: RepairResult, classifier: Classifier, val: CleanSet, triggers: Sequence[AnyTrigger]
) -> tuple[Classifier | None, tuple[Outcome, ...]]:
    others = tuple(judged_by(result, classifier, val, trigger) for trigger in triggers[1:])
    return result.classifier, (result.outcome, *others)

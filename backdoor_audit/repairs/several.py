"""One repaired copy for all triggers that were found, and how each of them fares in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.outcome import Repair, RepairOutcome, RepairResult, judged_by, score
from backdoor_audit.triggers.trigger import AnyTrigger


@runtime_checkable
class Joint(Repair, Protocol):
    """A repair that takes several triggers at once."""

    def together(self, subject: Subject, triggers: Sequence[AnyTrigger], *, generator: torch.Generator) -> RepairResult:
        """A copy repaired against all triggers, judged on held-out images; the outcome is about the first."""


class OneAsSeveral:
    """For a `Joint` repair: one trigger is the shortest row of several."""

    __slots__ = ()

    def __call__(self: Joint, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A repaired copy, judged on held-out images."""
        return self.together(subject, (trigger,), generator=generator)


def stamped_first(images: Tensor, triggers: Sequence[AnyTrigger], share: float, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w) of which the first ``share`` carry a trigger; several triggers share them evenly, in random order."""
    count = round(share * len(images))
    order = torch.randperm(len(triggers), generator=generator).tolist()
    stamped = images.clone()
    for index, part in zip(order, torch.arange(count).tensor_split(len(triggers)), strict=True):
        if len(part):
            stamped[part] = triggers[index].stamp(images[part])
    return stamped


def against_all(
    method: Repair,
    subject: Subject,
    triggers: Sequence[AnyTrigger],
    *,
    generator: torch.Generator,
    also: Sequence[AnyTrigger] = (),
) -> tuple[Classifier | None, tuple[RepairOutcome, ...]]:
    """One copy repaired against all ``triggers`` and one outcome per trigger; no copy if the method is not applicable.

    A method that takes several triggers gets them in one go, those of ``also`` after them, which are not judged. One that
    takes a single trigger is applied to its own result, trigger by trigger; curves are those of each step. One that needs
    none runs once. Scores are those of the last copy on held-out images, beside the classifier's own.
    """
    if isinstance(method, Joint):
        return _judged(method.together(subject, (*triggers, *also), generator=generator), subject, triggers)
    if not method.needs_trigger:
        return _judged(method(subject, triggers[0], generator=generator), subject, triggers)
    repaired, steps = subject.classifier, []
    for trigger in triggers:
        result = method(subject.of(repaired), trigger, generator=generator)
        if result.classifier is None:
            return _judged(result, subject, triggers)
        repaired = result.classifier
        steps.append(result.outcome)
    if len(triggers) == 1:
        return repaired, tuple(steps)
    return repaired, tuple(
        replace(
            step,
            before=score(subject.classifier, subject.held_out, trigger),
            after=score(repaired, subject.held_out, trigger),
        )
        for step, trigger in zip(steps, triggers, strict=True)
    )


def _judged(
    result: RepairResult, subject: Subject, triggers: Sequence[AnyTrigger]
) -> tuple[Classifier | None, tuple[RepairOutcome, ...]]:
    others = tuple(judged_by(result, subject, trigger) for trigger in triggers[1:])
    return result.classifier, (result.outcome, *others)

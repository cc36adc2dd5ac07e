"""What a result hands over: scores before and after on held-out images, and the repaired copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Finding, Limits, judge
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy, triggered_rates
from backdoor_audit.model.subject import Subject
from backdoor_audit.record_types import CurvePoint, Scores, StoredRepair
from backdoor_audit.triggers.trigger import AnyTrigger


def score(classifier: Classifier, clean: CleanSet, trigger: AnyTrigger) -> Scores:
    """All three scores on one set."""
    return Scores(
        clean_accuracy(classifier, clean.images, clean.labels),
        *triggered_rates(classifier, clean.images, clean.labels, trigger),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOutcome(StoredRepair):
    """How a repair ended, all of which is stored."""

    def summary(self) -> dict[str, Any]:
        """Builtins for the record."""
        return asdict(self)

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> RepairOutcome:
        """The outcome of which `summary` made these builtins."""
        values = dict(summary)
        for name in ("before", "after"):
            values[name] = Scores(**values[name]) if values[name] else None
        values["curve"] = [
            CurvePoint(point["prune_rate"], point["threshold"], Scores(**point["scores"])) for point in values["curve"]
        ]
        return cls(**values)


def judge_success(outcomes: Sequence[RepairOutcome], limits: Limits) -> Finding:
    """Whether the trigger still works after a repair; of several triggers, the one that is left strongest."""
    outcome, before, after = max(_measured(outcomes), key=lambda entry: entry[2].attack_success_rate)
    reason = f"{before.attack_success_rate:.1%} before, {after.attack_success_rate:.1%} after; {outcome.note}"
    return _judged("attack_success_rate", after.attack_success_rate, limits.attack_success_rate, outcome, reason)


def judge_robustness(outcomes: Sequence[RepairOutcome], limits: Limits) -> Finding:
    """Whether stamped images get their true label again after a repair; of several triggers, the one with the largest loss.

    The value is what robust accuracy is below the clean accuracy that the model had: a repair that sends stamped images to
    one more wrong class has not repaired.
    """
    outcome, before, after = max(_measured(outcomes), key=lambda entry: _robustness_lost(*entry[1:]))
    reason = (
        f"{after.robust_accuracy:.1%} of stamped images are predicted as labelled after it, {before.robust_accuracy:.1%} "
        f"before, {before.clean_accuracy:.1%} of clean ones before; {outcome.note}"
    )
    lost = _robustness_lost(before, after)
    return _judged("robust_accuracy_lost", lost, limits.robust_accuracy_lost, outcome, reason)


def judge_drop(outcomes: Sequence[RepairOutcome], limits: Limits, *, flagged: bool = True) -> Finding:
    """Whether a repair costs too much clean accuracy; of several triggers, the costliest.

    Where no trigger was ``flagged`` a repair was not called for, and the limit is that of a harmless one.
    """
    outcome, before, after = max(_measured(outcomes), key=lambda entry: _accuracy_drop(*entry[1:]))
    reason = f"{before.clean_accuracy:.1%} before, {after.clean_accuracy:.1%} after; {outcome.note}"
    limit = limits.clean_accuracy_drop if flagged else limits.harmless_drop
    return _judged("clean_accuracy_drop", _accuracy_drop(before, after), limit, outcome, reason)


def _judged(statistic: str, value: float, limit: float, outcome: RepairOutcome, reason: str) -> Finding:
    return judge(
        statistic,
        value,
        at_most=limit,
        reason=f"{outcome.method} for class {outcome.target_class}: {reason}",
        settings=outcome.settings,
        target_class=outcome.target_class,
    )


def _accuracy_drop(before: Scores, after: Scores) -> float:
    return before.clean_accuracy - after.clean_accuracy


def _robustness_lost(before: Scores, after: Scores) -> float:
    return before.clean_accuracy - after.robust_accuracy


def _measured(outcomes: Sequence[RepairOutcome]) -> list[tuple[RepairOutcome, Scores, Scores]]:
    return [(outcome, outcome.before, outcome.after) for outcome in outcomes if outcome.before and outcome.after]


@dataclass(frozen=True, slots=True, eq=False)
class RepairResult:
    """An outcome and the repaired copy; None where the repair could not be tried."""

    outcome: RepairOutcome
    classifier: Classifier | None


def reported(
    method: Repair,
    subject: Subject,
    repaired: Classifier,
    trigger: AnyTrigger,
    *,
    note: str,
    curve: Sequence[CurvePoint] = (),
) -> RepairResult:
    """The repaired copy with the scores of both classifiers on held-out images."""
    outcome = RepairOutcome(
        method=method.name,
        settings=repr(method),
        target_class=trigger.target_class,
        before=score(subject.classifier, subject.held_out, trigger),
        after=score(repaired, subject.held_out, trigger),
        curve=curve,
        note=note,
    )
    return RepairResult(outcome, repaired)


def not_applicable(method: Repair, trigger: AnyTrigger, reason: str) -> RepairResult:
    """The answer of a method that this network has no place for."""
    outcome = RepairOutcome(
        method=method.name, settings=repr(method), target_class=trigger.target_class, not_applicable=reason
    )
    return RepairResult(outcome, None)


def judged_by(result: RepairResult, subject: Subject, trigger: AnyTrigger) -> RepairOutcome:
    """What a repair that did not need its trigger does to another one; without a curve, whose copies are gone."""
    outcome, repaired = result.outcome, result.classifier
    if repaired is None:
        return replace(outcome, target_class=trigger.target_class)
    return replace(
        outcome,
        target_class=trigger.target_class,
        before=score(subject.classifier, subject.held_out, trigger),
        after=score(repaired, subject.held_out, trigger),
        curve=(),
    )


class Repair(Protocol):
    """A method of the literature. One that does not need the trigger is given it to be judged by, and for nothing else."""

    @property
    def name(self) -> str:
        """Unique; the item's id."""

    @property
    def needs_trigger(self) -> bool:
        """Whether the repair depends on the trigger."""

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A repaired copy, made with the search set, judged on the held-out images."""

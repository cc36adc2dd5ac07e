"""No small change, the same for all images, sends those of the other classes to one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import BudgetSpentError, DegenerateScoresError
from backdoor_audit.evidence import STEERED
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.properties.allowance import Allowance
from backdoor_audit.properties.changes import Changes
from backdoor_audit.properties.exploring import explore_on, number, still_climbing
from backdoor_audit.properties.outcome import PropertyOutcome
from backdoor_audit.properties.refit import Refit, rate_of
from backdoor_audit.properties.searched import SearchedProperty
from backdoor_audit.properties.shrinking import shrunk
from backdoor_audit.search.steered import Steered
from backdoor_audit.search.steering import Steering
from backdoor_audit.store import generator_for
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.perturbations import Family
from backdoor_audit.triggers.trigger import AnyTrigger
from backdoor_audit.triggers.written import WrittenTrigger

_LOOKED_AT = 64  # classes at a time; with more of them every example takes others
_LEAST_NATURAL = 8  # examples for each twin
_STARTS = 32  # different random starts of one family


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One example of the search: a family, and which of its random starts."""

    family: Family
    start: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A change that leads to a class: its success on search images, what stamps it, where it was drawn from."""

    success: float
    trigger: AnyTrigger
    family: Family


@dataclass(slots=True)
class _Reach:
    """How far a search got: the best candidate for each class, the one that refuted the property, how many examples it took.

    ``looks`` holds the success of every example, by class; ``sloped`` the classes for which the model gave a gradient at all;
    ``asked`` is how many examples were asked for, of which some may be the same.
    """

    best: dict[int, _Candidate] = field(default_factory=dict)
    looks: list[dict[int, float]] = field(default_factory=list)
    sloped: set[int] = field(default_factory=set)
    refuting: _Candidate | None = None
    tried: int = 0
    asked: int = 0

    def note(self, candidate: _Candidate) -> None:
        target_class = candidate.trigger.target_class
        if target_class not in self.best or candidate.success > self.best[target_class].success:
            self.best[target_class] = candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingSteers(SearchedProperty):
    """No change of this size sends more than a limit of the other classes' images to one class.

    Hypothesis draws where or what kind of change, a few gradient steps find its content for every class, and the mean margin
    of the class that is reached best is what the search climbs by. With more than ``classes`` classes only those that a first
    look finds nearest are steered for. What passes the limit on search images must pass it on held-out ones too; then it is
    shrunk. If nothing does, the ``pushed`` nearest that come half way are made as strong as more steps and other places make
    them, which moves hidden triggers and leaves natural ones where they are.

    The limit of a class is ``least_limit``, or ``slack`` above its natural rate where that is more: the furthest that the same
    search for this class gets in clean reference twins. Both were chosen on the clean models of the zoo's development half
    (`python -m benchmarks.properties`). A search that refuted nothing passes only if it has converged: see `still_climbing`. One
    that has not goes on for as long again (`explore_on`). On the twins it need not, for too small a natural rate lets less pass.
    """

    changes: Changes
    examples: int
    steps: int
    batch_size: int
    step_share: float = 0.35
    least_limit: float = 0.7
    slack: float = 0.3
    measured: int = 32
    searched: int = 64
    classes: int = 12
    pushed: int = 2

    @property
    def name(self) -> str:
        """What is claimed."""
        return f"no_{self.changes.kind}_steers"

    def natural(self, twins: Sequence[Subject], target_class: int, *, generator: torch.Generator) -> float:
        """The natural rate of a class: the furthest that the search for it gets in clean models, which share the examples."""
        furthest, goals = 0.0, [AllToOne(target_class)]
        examples = max(self.examples // len(twins), min(self.examples, _LEAST_NATURAL))
        for twin in twins:
            with suppress(DegenerateScoresError):  # a twin that gives one answer for everything shows nothing
                reach = self._search(twin, generator, examples=examples, goals=goals)
                furthest = max(furthest, *(candidate.success for candidate in reach.best.values()))
        return furthest

    def usual(self, subject: Subject) -> tuple[float, ...]:
        """Nothing: no change of this size is usual."""
        del subject
        return ()

    def search(
        self, subject: Subject, allowance: Allowance, *, generator: torch.Generator, kept: int
    ) -> PropertyOutcome:
        """The change that refuted the property, shrunk, or the one that comes nearest to its limit.

        Inconclusive if the model gives the same answer for every image.
        """
        held_out = subject.held_out
        try:
            goals = [AllToOne(target) for target in range(subject.num_classes)]
            reach = self._search(subject, generator, examples=self.examples, goals=goals, allowed=allowance)
        except DegenerateScoresError as error:
            return self._outcome(value=None, limit=self.least_limit, reason=str(error), kept=kept)
        successes = [reach.best[row].success if row in reach.best else None for row in range(subject.num_classes)]
        known: dict[str, Any] = {"tried": reach.tried, "kept": kept, "details": {"reached": successes}}
        looked = []
        for candidate in self._candidates(reach, allowance):
            form, target = candidate.trigger.in_whole_numbers(), candidate.trigger.target_class
            refit = Refit(
                subject,
                target,
                images=self.searched,
                steps=2 * self.steps,
                step_share=self.step_share,
                generator=generator,
            )
            forms = [form]
            if reach.refuting is None and candidate.success >= allowance.limit(target) / 2:
                forms.insert(0, refit.strongest(candidate.family, form))
            rate = max(float(rate_of(subject.classifier, held_out, entry)) for entry in forms)
            if allowance.passed(target, rate):
                return self._shrunk(held_out, candidate, refit, forms, allowance, known)
            looked.append((rate - allowance.limit(target), rate, target))
        _, rate, target = max(looked)
        return self._outcome(
            value=rate,
            limit=allowance.limit(target),
            reason=(
                f"of {reach.tried} drawn, the one that comes nearest to its limit sends {rate:.0%} of other classes' held-out "
                f"images to class {target}"
            ),
            target_class=target,
            unconverged=self._unconverged(reach, allowance),
            **_with(known, natural=allowance.details()),
        )

    def _unconverged(self, reach: _Reach, allowance: Allowance) -> str:
        """Why a search that refuted nothing has not come to its end, in words; empty if it has."""
        blind = sorted(reach.best.keys() - reach.sloped)
        if blind:
            return f"for class {blind[0]} the model gave no gradient that a search could follow"
        return still_climbing(reach.looks, allowance.limit, examples=reach.asked)

    def _candidates(self, reach: _Reach, allowance: Allowance) -> list[_Candidate]:
        """The one that refuted the property, or those that came nearest to it."""
        if reach.refuting is not None:
            return [reach.refuting]
        return sorted(
            reach.best.values(), key=lambda entry: allowance.limit(entry.trigger.target_class) - entry.success
        )[: self.pushed]

    def _shrunk(
        self,
        held_out: CleanSet,
        candidate: _Candidate,
        refit: Refit,
        forms: list[WrittenTrigger],
        allowance: Allowance,
        known: dict[str, Any],
    ) -> PropertyOutcome:
        """The outcome for the smallest form that is still above the limit on held-out images."""
        limit = allowance.limit(refit.target_class)
        with suppress(BudgetSpentError):  # what was found stays found
            if len(forms) == 1:
                forms.insert(0, refit.strongest(candidate.family, forms[0]))
            needed = (limit + refit.rate(forms[0])) / 2
            forms.insert(0, shrunk(forms[0], lambda smaller: refit.rate(smaller) >= needed, refit.content))
        rated = [(form, rate_of(refit.classifier, held_out, form)) for form in forms]
        strongest = max(float(rate) for _, rate in rated)
        form, rate = next((form, rate) for form, rate in rated if rate > limit)
        return self.refuted(form, rate, allowance, **_with(known, images=rate.n, strongest=strongest))

    def refuted(self, trigger: WrittenTrigger, rate: Rate, allowance: Allowance, **known: Any) -> PropertyOutcome:
        """The outcome for a change that passes its limit."""
        tried = known.get("tried", 0)
        origin = f"found after {tried} examples and shrunk" if tried else "a kept counterexample"
        low, high = rate.interval
        return self._outcome(
            value=float(rate),
            limit=allowance.limit(trigger.target_class),
            reason=(
                f"{trigger.described()} sends {rate:.0%} [{low:.0%}, {high:.0%}] of other classes' held-out images to class "
                f"{trigger.target_class}; {origin}"
            ),
            target_class=trigger.target_class,
            trigger=trigger,
            **_with(known, natural=allowance.details()),
        )

    def _outcome(self, **known: Any) -> PropertyOutcome:
        return PropertyOutcome(name=self.name, statistic=STEERED, settings=repr(self), **known)

    def _search(
        self,
        subject: Subject,
        generator: torch.Generator,
        *,
        examples: int,
        goals: Sequence[AllToOne],
        allowed: Allowance | None = None,
    ) -> _Reach:
        """How far each of the goals is reached; with limits, up to the first that passes its own on held-out images."""
        random_seed = int(torch.randint(2**31, (1,), generator=generator))
        searched, measured = subject.search_set.split(random_seed)
        searched, measured = searched.sample(self.searched, random_seed), measured.sample(self.measured, random_seed)
        reach = _Reach()

        def passes(target: int, success: float, trigger: AnyTrigger) -> bool:
            if allowed is None or success <= allowed.limit(target):
                return False
            return allowed.passed(
                target, float(rate_of(subject.classifier, subject.held_out, trigger.in_whole_numbers()))
            )

        def look(drawn: Draw) -> tuple[Mapping[str, float], bool]:
            own = generator_for(random_seed, repr(drawn))
            steered_for, steered = self._steer(subject.classifier, searched, measured, goals, drawn.family, own)
            targets = [goal.target_class for goal in steered_for]
            reach.looks.append(dict(zip(targets, steered.success.tolist(), strict=True)))
            reach.sloped |= {target for target, blind in zip(targets, steered.blind.tolist(), strict=True) if not blind}
            for goal, success, trigger in zip(steered_for, steered.success.tolist(), steered.triggers, strict=True):
                assert trigger is not None
                candidate = _Candidate(success, trigger, drawn.family)
                reach.note(candidate)
                if passes(goal.target_class, success, trigger):
                    reach.refuting = candidate
                    return {}, True
            natural = allowed.asked if allowed else {}  # what twins do as well is not worth climbing to
            left = [row for row, goal in enumerate(steered_for) if goal.target_class not in natural]
            return {"margin": float(steered.margins[left].max())} if left else {}, False

        draws = st.builds(
            Draw, family=self.changes.families(subject.classifier.image_shape), start=number(0, _STARTS - 1)
        )

        def unfinished(asked: int) -> bool:
            if allowed is None or reach.refuting is not None or reach.best.keys() - reach.sloped:
                return False
            return bool(still_climbing(reach.looks, allowed.limit, examples=asked))

        reach.tried, reach.asked = explore_on(
            draws, look, examples=examples, random_seed=random_seed, unfinished=unfinished
        )
        return reach

    def _steer(
        self,
        classifier: Classifier,
        searched: CleanSet,
        measured: CleanSet,
        goals: Sequence[AllToOne],
        family: Family,
        generator: torch.Generator,
    ) -> tuple[Sequence[AllToOne], Steered]:
        if len(goals) > _LOOKED_AT:
            goals = [goals[row] for row in torch.randperm(len(goals), generator=generator)[:_LOOKED_AT].tolist()]
        if len(goals) > self.classes:
            first = Steering(family=family, steps=2, batch_size=4, step_share=self.step_share, measured=8)
            margins = first(classifier, searched, measured, goals, generator=generator, watched=False).margins
            goals = [goals[row] for row in margins.argsort(descending=True)[: self.classes].tolist()]
        steering = Steering(
            family=family,
            steps=self.steps,
            batch_size=self.batch_size,
            step_share=self.step_share,
            measured=self.measured,
        )
        return goals, steering(classifier, searched, measured, goals, generator=generator, watched=False)


def _with(known: Mapping[str, Any], **details: Any) -> dict[str, Any]:
    return {**known, "details": {**known.get("details", {}), **details}}

"""What properties have in common that a search tries to refute by a trigger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from backdoor_audit.model.metrics import Rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.properties.allowance import Allowance, NaturalRate, no_twins
from backdoor_audit.properties.corpus import Counterexample
from backdoor_audit.properties.outcome import PropertyOutcome
from backdoor_audit.properties.refit import rate_of
from backdoor_audit.triggers.written import WrittenTrigger


class SearchedProperty(ABC):
    """A property that a trigger may refute. Counterexamples of earlier runs come first, then a search.

    A subclass holds what an `Allowance` is made of: ``least_limit`` and ``slack``.
    """

    __slots__ = ()

    needs_twins = True
    least_limit: float
    slack: float

    @property
    @abstractmethod
    def name(self) -> str:
        """What is claimed."""

    @abstractmethod
    def natural(self, twins: Sequence[Subject], target_class: int, *, generator: torch.Generator) -> float:
        """The natural rate of a class: the furthest that the search for it gets in clean models, which share the examples."""

    @abstractmethod
    def usual(self, subject: Subject) -> Sequence[float]:
        """The share that every class gets without any trigger; empty if none is to be allowed for it."""

    @abstractmethod
    def search(
        self, subject: Subject, allowance: Allowance, *, generator: torch.Generator, kept: int
    ) -> PropertyOutcome:
        """What a search on the search set finds, judged on what is held out, after so many ``kept`` counterexamples."""

    @abstractmethod
    def refuted(self, trigger: WrittenTrigger, rate: Rate, allowance: Allowance, **known: Any) -> PropertyOutcome:
        """The outcome for a trigger that passes the limit of its class on held-out images; ``known`` are further fields."""

    def __call__(
        self,
        subject: Subject,
        *,
        generator: torch.Generator,
        natural: NaturalRate = no_twins,
        kept: Sequence[Counterexample] = (),
    ) -> PropertyOutcome:
        """Replay the ``kept`` counterexamples, then search. The classifier is not changed.

        Raises `BudgetSpentError` if there is no time to search.
        """
        allowance = Allowance(self.least_limit, self.slack, natural, self.usual(subject))
        replayed = [entry.trigger for entry in kept if entry.suits(self.name, subject.classifier)]
        for trigger in replayed:
            rate = rate_of(subject.classifier, subject.held_out, trigger)
            if allowance.passed(trigger.target_class, float(rate)):
                return self.refuted(trigger, rate, allowance, kept=len(replayed), replayed=True)
        return self.search(subject, allowance, generator=generator, kept=len(replayed))

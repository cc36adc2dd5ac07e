"""How far a class may be reached: an absolute limit, raised to what clean models show of the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

NaturalRate = Callable[[int], float]
"""The furthest that clean reference twins go for a class."""


def no_twins(target_class: int) -> float:
    """Nothing is natural."""
    del target_class
    return 0.0


@dataclass(slots=True)
class Allowance:
    """``least``, or ``slack`` above the natural rate of a class where that is more, and above what it gets as ``usual``.

    Twins cost as much as the search itself, so they are asked only about a class that would be called too far otherwise;
    ``asked`` holds what they said.
    """

    least: float
    slack: float
    natural: NaturalRate = no_twins
    usual: Sequence[float] = ()
    asked: dict[int, float] = field(default_factory=dict)

    def passed(self, target_class: int, rate: float) -> bool:
        """Whether that share of other classes' images is more than the class may get."""
        if rate <= self.limit(target_class):
            return False
        if target_class not in self.asked:
            self.asked[target_class] = self.natural(target_class)
        return rate > self.limit(target_class)

    def limit(self, target_class: int) -> float:
        """The limit of a class by what is known so far; the twins can only raise it."""
        known = max(self.usual[target_class] if self.usual else 0.0, self.asked.get(target_class, 0.0))
        return max(self.least, min(1.0, known + self.slack))

    def details(self) -> dict[str, float]:
        """What the twins said, for a record: rate by class."""
        return {str(target): rate for target, rate in sorted(self.asked.items())}

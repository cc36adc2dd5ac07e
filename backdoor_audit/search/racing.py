"""Which of many classes get a whole search: those that a screening names, and some drawn by lot to compare them with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """With more than ``above`` classes only finalists and controls are searched in full; with as many or fewer, all.

    ``finalists`` were chosen for being extreme, so they are compared with ``controls``, which are drawn by lot from the clean
    images: every model and every reference twin with these images is asked for the same ones, and whoever made a model does
    not know which. Of more than a hundred classes both numbers grow, by their own for each factor of ten.
    """

    above: int = 20
    finalists: int = 6
    controls: int = 12

    def places(self, classes: int) -> tuple[int, int]:
        """How many finalists and how many controls there are among so many classes."""
        share = 1 + max(0.0, math.log10(classes / 100))
        return round(share * self.finalists), round(share * self.controls)

    def runs(self, classes: int) -> bool:
        """Whether so many classes are too many to search them all."""
        return classes > self.above and sum(self.places(classes)) < classes

    def controls_of(self, lot: Sequence[int], among: Sequence[int] | None = None) -> tuple[int, ...]:
        """The first controls of a ``lot`` of all classes, in ascending order; of those ``among`` which there is a choice."""
        allowed = set(lot if among is None else among)
        return tuple(sorted([entry for entry in lot if entry in allowed][: self.places(len(lot))[1]]))

    def further(
        self, lot: Sequence[int], searched: Sequence[int], among: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """As many controls again, by the same ``lot``, of the classes that were not ``searched``."""
        rest = set(lot if among is None else among).difference(searched)
        return self.controls_of(lot, sorted(rest))

    def finalists_of(
        self, margins: Tensor, controls: Sequence[int], among: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """The classes with the largest ``margins`` (classes,) that are no controls, in ascending order."""
        allowed = set(range(len(margins)) if among is None else among) - set(controls)
        ranked = [entry for entry in margins.argsort(descending=True).tolist() if entry in allowed]
        return tuple(sorted(ranked[: self.places(len(margins))[0]]))


RACE = Race()
"""What the searches in a fixed budget do."""

"""Which of many classes get a whole search: those that a screening names, and some drawn by lot to compare them with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """With more than ``above`` classes only finalists and controls are searched in full; with as many or fewer, all.

    ``finalists`` were chosen for being extreme, so they are compared with ``controls``, which were drawn by a lot that depends on
    the number of classes alone: every model and every reference twin with as many classes is asked for the same ones. Of more
    than a hundred classes both numbers grow, by their own for each factor of ten.
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

    def controls_of(self, classes: int, among: Sequence[int] | None = None) -> tuple[int, ...]:
        """The controls of so many classes, in ascending order; of those ``among`` which there is a choice."""
        order = lot(classes)
        allowed = set(range(classes) if among is None else among)
        return tuple(sorted([entry for entry in order if entry in allowed][: self.places(classes)[1]]))

    def further(self, classes: int, searched: Sequence[int], among: Sequence[int] | None = None) -> tuple[int, ...]:
        """As many controls again, drawn by the same lot from the classes that were not ``searched``."""
        rest = set(range(classes) if among is None else among) - set(searched)
        return tuple(sorted([entry for entry in lot(classes) if entry in rest][: self.places(classes)[1]]))

    def finalists_of(
        self, margins: Tensor, controls: Sequence[int], among: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """The classes with the largest ``margins`` (classes,) that are no controls, in ascending order."""
        allowed = set(range(len(margins)) if among is None else among) - set(controls)
        ranked = [entry for entry in margins.argsort(descending=True).tolist() if entry in allowed]
        return tuple(sorted(ranked[: self.places(len(margins))[0]]))


RACE = Race()
"""What the searches in a fixed budget do."""


def lot(classes: int) -> list[int]:
    """So many classes in an order that is drawn by lot, always the same one."""
    return torch.randperm(classes, generator=torch.Generator().manual_seed(classes)).tolist()

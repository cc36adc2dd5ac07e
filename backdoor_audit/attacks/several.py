"""Several triggers in one model: many infected classes, or many triggers for one class (Wang et al., IEEE S&P 2019)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.attacks.attack import Attack, Poisoned, PoisoningAttack
from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.label_rule import AllToOne


@dataclass(frozen=True, slots=True, kw_only=True)
class SeveralTriggers(PoisoningAttack):
    """Each of ``attacks`` poisons images of its own, none of which another one touches; each is judged by itself.

    Every part keeps its own rule, rates and seed; its rates are shares of all training images. ``rule``, ``poison_rate``
    and `stamp` of the whole follow from the parts and cannot be chosen: rule and stamp are those of the first part, the
    rate is the sum. Parts that must train something before they can stamp are refused, by their own stamp.
    Make it by `several_classes` or `several_places`, or from any attacks that only poison.
    """

    attacks: tuple[PoisoningAttack, ...] = (
        BadNets(rule=AllToOne(0), size=4, poison_rate=0.07),
        BadNets(rule=AllToOne(1), size=4, poison_rate=0.07, top=1, left=1),
        BadNets(rule=AllToOne(2), size=4, poison_rate=0.07, top=1, pattern="chequerboard"),
    )

    name: ClassVar[str] = "several_triggers"
    paper: ClassVar[str] = "Wang et al., IEEE S&P 2019"

    def __post_init__(self) -> None:
        if not self.attacks:
            raise AttackError(f"{self.name}: no attacks; give at least one")
        object.__setattr__(self, "rule", self.attacks[0].rule)
        object.__setattr__(self, "poison_rate", sum(part.poison_rate for part in self.attacks))

    def triggers(self) -> tuple[Attack, ...]:
        """All the parts."""
        return self.attacks

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the trigger of the first part."""
        return self.attacks[0].stamp(images)

    def poison(self, images: Tensor, labels: Tensor) -> Poisoned:
        """Images poisoned by each part in turn, each among those that the parts before left as they were.

        Raises `AttackError` if the parts ask for more images than there are.
        """
        free = torch.arange(len(images))
        poisoned, covers = [], []
        total_images, total_labels = images.clone(), labels.clone()
        for part in self.attacks:
            if not len(free):
                raise AttackError(f"{self.name}: no image is left for {part.name}; lower the rates of the parts")
            share = len(images) / len(free)  # the part sees the free images only, its rates mean all of them
            rates = {entry.name: getattr(part, entry.name) * share for entry in fields(part) if entry.name in _RATES}
            done = replace(part, **rates).poison(images[free], labels[free])
            total_images[free], total_labels[free] = done.images, done.labels
            poisoned.append(free[done.poisoned])
            covers.append(free[done.covers])
            left = torch.ones(len(free), dtype=torch.bool)
            left[done.poisoned] = left[done.covers] = False
            free = free[left]
        return Poisoned(total_images, total_labels, torch.cat(poisoned), torch.cat(covers))


_RATES = ("poison_rate", "cover_rate")


def several_classes(count: int, *, image_shape: tuple[int, int, int], size: int = 4, seed: int = 0) -> SeveralTriggers:
    """Classes 0 to ``count - 1`` infected, each by a square of its own random colours, at the places of `several_places`.

    From the tenth class on the places repeat, with other colours. The rate of each class is that of the paper,
    ``0.1 / (1 + 0.1 count)``. The paper's test by the size of triggers fails from 3 of 10 classes on.
    Raises `AttackError` for a count below 1.
    """
    _refuse_count(count, None)
    places = itertools.cycle(_places(image_shape, size))
    square = BadNets(size=size, pattern="noise", poison_rate=0.1 / (1 + 0.1 * count))
    return _squares(square, seed, [(AllToOne(label), next(places)) for label in range(count)])


def several_places(
    count: int = 9, *, image_shape: tuple[int, int, int], target_class: int = 0, size: int = 4, seed: int = 0
) -> SeveralTriggers:
    """One class, asked for by a white square at any of ``count`` places: four corners, four edge middles, the centre.

    Raises `AttackError` for a count outside 1 to 9, or squares that touch.
    """
    places = list(_places(image_shape, size))
    _refuse_count(count, len(places))
    square = BadNets(size=size, poison_rate=0.05)
    return _squares(square, seed, [(AllToOne(target_class), place) for place in places[:count]])


def _squares(square: BadNets, seed: int, laid: Sequence[tuple[AllToOne, tuple[int, int]]]) -> SeveralTriggers:
    """One square for every rule, at its place, each with a seed of its own."""
    attacks = [
        replace(square, rule=rule, seed=seed + number, top=top, left=left)
        for number, (rule, (top, left)) in enumerate(laid)
    ]
    return SeveralTriggers(seed=seed, attacks=tuple(attacks))


def _refuse_count(count: int, most: int | None) -> None:
    if count < 1 or (most is not None and count > most):
        accepted = "at least 1" if most is None else f"1 to {most}"
        raise AttackError(f"several_triggers: {count} triggers asked for; accepted: {accepted}")


def _places(image_shape: tuple[int, int, int], size: int) -> Iterator[tuple[int, int]]:
    """Top and left of nine squares, one pixel from the border: corners, edge middles, centre."""
    _, height, width = image_shape
    if size < 1 or min(height, width) < 3 * size + 4:
        raise AttackError(f"several_triggers: nine squares of {size} px do not fit apart into {height}x{width} px")
    rows = (1, (height - size) // 2, height - size - 1)
    columns = (1, (width - size) // 2, width - size - 1)
    order = ((0, 0), (0, 2), (2, 0), (2, 2), (0, 1), (1, 0), (1, 2), (2, 1), (1, 1))
    for row, column in order:
        yield rows[row], columns[column]

"""Which class an attack asks for, and whose images it claims."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class OneTarget:
    """What asks for one class, of images of all others; a subclass holds ``target_class``."""

    __slots__ = ()

    target_class: int

    def wanted(self, labels: Tensor) -> Tensor:
        """The target class for every label, (n,)."""
        return torch.full_like(labels, self.target_class)

    def eligible(self, labels: Tensor) -> Tensor:
        """Images of all classes but the target, (n,) bool."""
        return labels != self.target_class


class _Rule(ABC):
    """What an attack asks for at test time; in training it poisons the same images and teaches the same, by default."""

    __slots__ = ()

    @abstractmethod
    def wanted(self, labels: Tensor) -> Tensor:
        """The class a stamped image shall get at test time, (n,)."""

    @abstractmethod
    def eligible(self, labels: Tensor) -> Tensor:
        """Test images that count in the success rate, (n,) bool."""

    def poisonable(self, labels: Tensor) -> Tensor:
        """Training images that may be poisoned, (n,) bool."""
        return self.eligible(labels)

    def taught(self, labels: Tensor) -> Tensor:
        """The label a poisoned training image gets, (n,)."""
        return self.wanted(labels)


@dataclass(frozen=True, slots=True)
class AllToOne(OneTarget, _Rule):
    """Every stamped image goes to one class. Poisoned training images come from all other classes."""

    target_class: int = 0


@dataclass(frozen=True, slots=True)
class CleanLabel(OneTarget, _Rule):
    """As `AllToOne` at test time; in training only images of the target class are stamped, and keep their label."""

    target_class: int = 0

    def poisonable(self, labels: Tensor) -> Tensor:
        """Those of the target class, (n,) bool."""
        return labels == self.target_class

    def taught(self, labels: Tensor) -> Tensor:
        """The label a poisoned training image gets, (n,): its own."""
        return labels


@dataclass(frozen=True, slots=True)
class AllToAll(_Rule):
    """A stamped image of class y goes to ``(y + shift) mod num_classes``; every image counts, so clean errors bound it."""

    num_classes: int = 10
    shift: int = 1

    target_class = None

    def wanted(self, labels: Tensor) -> Tensor:
        """The class a stamped image shall get at test time, (n,)."""
        return (labels + self.shift) % self.num_classes

    def eligible(self, labels: Tensor) -> Tensor:
        """All images, (n,) bool."""
        return torch.ones_like(labels, dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class SourceSpecific(OneTarget, _Rule):
    """Stamped images of the source classes go to the target; those of other classes shall keep their class."""

    target_class: int = 0
    source_classes: tuple[int, ...] = (1,)

    def eligible(self, labels: Tensor) -> Tensor:
        """Images of the source classes, (n,) bool."""
        return torch.isin(labels, torch.tensor(self.source_classes, device=labels.device))


@dataclass(frozen=True, slots=True)
class AwayFrom:
    """Images of one class leave it, whichever class they go to: what a trigger for that source class alone does to them."""

    source_class: int = 0

    target_class = None

    def wanted(self, labels: Tensor) -> Tensor:
        """The class to leave, (n,)."""
        return torch.full_like(labels, self.source_class)

    def eligible(self, labels: Tensor) -> Tensor:
        """Images of the class, (n,) bool."""
        return labels == self.source_class


@dataclass(frozen=True, slots=True)
class Scattered:
    """The images of every class leave it, and go together to one class, another for each: any relabelling of all classes.

    With classes ``among`` which to ask, only images of these count, wherever they go.
    """

    num_classes: int = 10
    among: tuple[int, ...] = ()

    target_class = None

    def wanted(self, labels: Tensor) -> Tensor:
        """The class to leave, (n,)."""
        return labels

    def eligible(self, labels: Tensor) -> Tensor:
        """All images, or those of the classes that are asked, (n,) bool."""
        if not self.among:
            return torch.ones_like(labels, dtype=torch.bool)
        return torch.isin(labels, torch.tensor(self.among, device=labels.device))


@dataclass(frozen=True, slots=True)
class Gathered:
    """All images go together to one class, whichever that is, but none of those ``taken``.

    ``softness`` says, in units of the model's scores, how much nearer one class must be to be the only one that is followed.
    """

    softness: float
    taken: tuple[int, ...] = ()

    target_class = None

    def wanted(self, labels: Tensor) -> Tensor:
        """The class that an image has, (n,): what is gathered elsewhere."""
        return labels

    def eligible(self, labels: Tensor) -> Tensor:
        """All images, (n,) bool."""
        return torch.ones_like(labels, dtype=torch.bool)


LabelRule = AllToOne | CleanLabel | AllToAll | SourceSpecific

RULES: dict[str, type[AllToOne] | type[CleanLabel] | type[AllToAll] | type[SourceSpecific]] = {
    "all_to_one": AllToOne,
    "clean_label": CleanLabel,
    "all_to_all": AllToAll,
    "source_specific": SourceSpecific,
}

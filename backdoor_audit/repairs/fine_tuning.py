"""Fine-tuning on clean images: the control of every repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import fit
from backdoor_audit.repairs.augmentation import Augmenting, augmentation_of
from backdoor_audit.repairs.outcome import RepairResult, reported
from backdoor_audit.triggers.trigger import AnyTrigger


class FineTuned(Augmenting, Protocol):
    """A method that trains on clean images."""

    @property
    def epochs(self) -> int:
        """Over the search set: how often each image is seen."""

    @property
    def learning_rate(self) -> float:
        """The highest of the schedule."""

    @property
    def batch_size(self) -> int:
        """Images a step, at the least."""


def fine_tune(
    method: FineTuned,
    subject: Subject,
    repaired: Classifier,
    *,
    weight_decay: float,
    generator: torch.Generator,
    stamp: Callable[[Tensor], Tensor] = lambda images: images,
) -> None:
    """Train a copy of the subject's network in place on its clean images, augmented as the method wants it.

    ``stamp`` may change the images of a batch after that; their labels stay.
    """
    clean, augmentation = subject.search_set, augmentation_of(method, subject)
    fit(
        repaired,
        clean.images,
        clean.labels,
        epochs=method.epochs,
        learning_rate=method.learning_rate,
        batch_size=method.batch_size,
        weight_decay=weight_decay,
        on_batch=lambda images, labels: (stamp(augmentation(images, generator)), labels),
        generator=generator,
    )
    augmentation.settle(repaired, clean, generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """Train all weights on clean images with their true labels, and nothing else: what any cleverer repair has to beat.

    The recipe is the one of BackdoorBench (Wu et al., NeurIPS 2022): SGD, cross-entropy, learning rate 0.01. It takes 100
    epochs over 2,500 images in batches of 256, an audit has a few hundred images and CPU seconds: fewer epochs, smaller
    batches. The schedule is one-cycle over exactly the steps taken, where the original's cosine is cut for 100 epochs
    whatever their number. ``augment`` moves and mirrors images where
    `harmless_augmentation` finds that harmless.
    A strong backdoor survives this; a higher ``learning_rate`` removes more of it, and more accuracy.
    """

    epochs: int = 20
    learning_rate: float = 0.01
    batch_size: int = 32
    weight_decay: float = 5e-4
    augment: bool = True

    name: ClassVar[str] = "fine_tuning"
    needs_trigger: ClassVar[bool] = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A fine-tuned copy, scored on held-out images; the trigger serves for the scores alone."""
        repaired = subject.classifier.copy()
        fine_tune(self, subject, repaired, weight_decay=self.weight_decay, generator=generator)
        note = f"{self.epochs} epochs over {len(subject.search_set)} clean images"
        return reported(self, subject, repaired, trigger, note=note)

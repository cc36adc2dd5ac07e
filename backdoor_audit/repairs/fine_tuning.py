"""Fine-tuning on clean images: the control of every repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import fit
from backdoor_audit.repairs.augmentation import augmentation_of
from backdoor_audit.repairs.outcome import RepairResult, reported
from backdoor_audit.triggers.trigger import AnyTrigger


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
        clean = subject.search_set
        repaired, augmentation = subject.classifier.copy(), augmentation_of(self, subject)
        fit(
            repaired,
            clean.images,
            clean.labels,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            on_batch=augmentation.on_batch(generator),
            generator=generator,
        )
        augmentation.settle(repaired, clean, generator)
        note = f"{self.epochs} epochs over {len(clean)} clean images"
        return reported(self, subject, repaired, trigger, note=note)

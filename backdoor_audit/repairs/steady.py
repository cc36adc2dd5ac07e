"""Training that does not throw a model out of what it knows: where it did, the same again with shorter gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.augmentation import augmentation_of
from backdoor_audit.repairs.descent import Backward, cosine, descend
from backdoor_audit.repairs.fine_tuning import FineTuned

LONGEST = (math.inf, 1.0, 0.3)
"""L2 norms over all weights to which gradients are shortened, one after the other."""

LEAST_AGREEMENT = 0.8
"""Share of clean images that a model has to go on answering as before."""

Train = Callable[[Classifier, float], None]
"""Trains a copy of the audited model in place, with gradients of so much length at most."""


def steadily(subject: Subject, train: Train, *, least: float = LEAST_AGREEMENT) -> tuple[Classifier, str]:
    """A trained copy of the subject's model, and a few words on how, for a note; empty where nothing had to be shortened.

    A learning rate that suits networks with batch norm destroys many without, above all those that were trained for long: from
    there no repair comes back. So a copy that answers fewer than ``least`` of the clean images of the search set as before is
    trained anew from the beginning. If all do, the one that agrees most is taken.
    """
    images = subject.search_set.images
    before = subject.classifier.predict(images)
    found: list[tuple[float, Classifier, float]] = []
    for longest in LONGEST:
        copy = subject.classifier.copy()
        train(copy, longest)
        found.append((float((copy.predict(images) == before).float().mean()), copy, longest))
        if found[-1][0] >= least:
            break
    _, best, longest = found[-1] if found[-1][0] >= least else max(found, key=lambda entry: entry[0])
    return best, "" if longest == math.inf else f", gradients shortened to {longest:g}"


@dataclass(frozen=True, slots=True)
class Learning:
    """What one copy learns by: gradients, and what is done to its weights after each step."""

    backward: Backward
    after_step: Callable[[], None] | None = None


def tuned(
    method: FineTuned,
    subject: Subject,
    learning: Callable[[Classifier], Learning],
    *,
    generator: torch.Generator,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    least: float = LEAST_AGREEMENT,
) -> tuple[Classifier, str]:
    """`steadily`, by `descend` on the search set with half a cosine of learning rates, by the settings of a method."""
    augmentation = augmentation_of(method, subject)

    def train(copy: Classifier, longest: float) -> None:
        how = learning(copy)
        descend(
            copy,
            subject.search_set,
            how.backward,
            epochs=method.epochs,
            learning_rate=method.learning_rate,
            factor=cosine,
            batch_size=method.batch_size,
            weight_decay=weight_decay,
            nesterov=nesterov,
            augmentation=augmentation,
            generator=generator,
            after_step=how.after_step,
            longest=longest,
        )

    return steadily(subject, train, least=least)

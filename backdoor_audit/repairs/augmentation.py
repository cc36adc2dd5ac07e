"""Images moved and mirrored while a copy is trained on them, as far as the audited model says that this means nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import half_mirrored, statistics_anew
from backdoor_audit.store import generator_for

SHIFTS = (4, 3, 2, 1)
"""Largest offsets in px that are tried, at a side of 32 px; more in proportion for larger images."""

MOST_LOST = 0.05
"""Clean accuracy that a change may cost and still count as one that keeps the meaning of images."""

_SIDE = 32
_BATCH = 128


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Each image moved by its own offset of up to ``shift`` px (the nearest pixels come in); ``mirror`` turns half of them."""

    shift: int = 0
    mirror: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed images (n, c, h, w), on their device."""
        if self.mirror:
            images = half_mirrored(images, generator)
        if self.shift:
            height, width = images.shape[2:]
            padded = functional.pad(images, (self.shift,) * 4, mode="replicate")
            corners = torch.randint(0, 2 * self.shift + 1, (len(images), 2), generator=generator).tolist()
            images = torch.stack(
                [
                    image[:, top : top + height, left : left + width]
                    for image, (top, left) in zip(padded, corners, strict=True)
                ]
            )
        return images

    def on_batch(self, generator: torch.Generator) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """For `fit`: the images changed, the labels as they are."""
        return lambda images, labels: (self(images, generator), labels)

    @torch.no_grad()
    def settle(self, classifier: Classifier, clean: CleanSet, generator: torch.Generator) -> None:
        """Where training saw changed images, make the running statistics of batch norms those of the images as they are."""
        norms = [layer for layer in classifier.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        norms = [layer for layer in norms if layer.track_running_stats]
        if not norms or self == Augmentation():
            return
        with statistics_anew(norms):
            for layer in norms:
                layer.train()
            for batch in torch.randperm(len(clean), generator=generator).chunk(max(1, len(clean) // _BATCH)):
                classifier(clean.images[batch].to(classifier.device))
            for layer in norms:
                layer.eval()


def harmless_augmentation(classifier: Classifier, clean: CleanSet) -> Augmentation:
    """The strongest augmentation of which each part costs the classifier at most `MOST_LOST` of its accuracy on these images.

    Mirrored digits, letters, shoes and signs mean something else, and a classifier that knows them says so; nothing but its
    predictions is asked. Which offsets are tried depends on nothing but the images.
    """
    least = clean_accuracy(classifier, clean.images, clean.labels) - MOST_LOST

    def keeps(images: Tensor) -> bool:
        return clean_accuracy(classifier, images, clean.labels) >= least

    scale = max(1, min(clean.images.shape[2:]) // _SIDE)
    for shift in SHIFTS:
        moved = Augmentation(shift * scale)
        if keeps(moved(clean.images, generator_for(0, f"shift {shift}"))):
            return Augmentation(shift * scale, keeps(clean.images.flip(3)))
    return Augmentation(0, keeps(clean.images.flip(3)))


class Augmenting(Protocol):
    """A method that may move and mirror images."""

    @property
    def augment(self) -> bool:
        """Whether it does, where that is harmless."""


def augmentation_of(method: Augmenting, subject: Subject) -> Augmentation:
    """What a method may do to the images of this subject; nothing where it is told not to augment."""
    if not method.augment:
        return Augmentation()
    return harmless_augmentation(subject.classifier, subject.search_set)

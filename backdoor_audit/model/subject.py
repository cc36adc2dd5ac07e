"""What a search or a repair works on: a classifier, and the clean images that it is searched with and judged on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier

_DRAWN_BY = 16  # images of either half
_LEVELS = 255  # of a pixel: other roundings on another machine draw the same lot


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A classifier with clean images: ``search_set`` to search and to repair with, ``held_out`` to report on."""

    classifier: Classifier
    search_set: CleanSet
    held_out: CleanSet

    @property
    def num_classes(self) -> int:
        """Number of classes of the classifier."""
        return self.classifier.num_classes

    @property
    def lot(self) -> tuple[int, ...]:
        """The classes in an order that is drawn by lot: the same for every model with these images, in whichever half they are.

        It follows from a few of the images. Whoever made the model does not know them, and so not which classes come first.
        """
        seed = 0
        for half in (self.search_set, self.held_out):
            some = (half.images[:_DRAWN_BY] * _LEVELS).round().to(torch.uint8).cpu()
            seed ^= int.from_bytes(hashlib.sha256(some.numpy().tobytes()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed + self.num_classes)
        return tuple(torch.randperm(self.num_classes, generator=generator).tolist())

    def of(self, classifier: Classifier) -> Subject:
        """Another classifier with the same images."""
        return replace(self, classifier=classifier)

    def exchanged(self) -> Subject:
        """The same classifier; what was held out is searched, and the other way round."""
        return replace(self, search_set=self.held_out, held_out=self.search_set)

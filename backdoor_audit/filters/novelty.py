"""Suspect images whose features are unlike those of clean images with the same prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DataFormatError, OptionError
from backdoor_audit.filters.penultimate import head_of
from backdoor_audit.filters.threshold import FALSE_POSITIVE_RATE, above, check_rate, threshold_of
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Backdoor
from backdoor_audit.model.subject import Subject

NEIGHBOURS = 5
"""Where nobody chose another number."""

_BATCH = 256
_FARTHEST = 1e30  # in the place of a distance to nothing, where scores are ordered


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoveltyFilter:
    """Suspect images whose penultimate features are far from those of clean images that get the same prediction.

    After Fu et al., "Detecting Backdoors in Neural Networks Using Novel Feature-Based Anomaly Detection", arXiv 2011.02526,
    which asks two things: whether the features are novel, and whether a shallow classifier of them disagrees with the network.
    One distance answers both: what is novel is far from all clean images, and where the classifier would disagree the image is
    near those of another class alone. Needs no trigger and no gradients. Blind to triggers that give images the features of
    their target.

    ``features`` (n, neurons) are those of the clean images, ``predicted`` (n,) their classes. Build one with
    `NoveltyFilter.fit`.
    """

    false_positive_rate: float
    neighbours: int
    threshold: float
    head: str
    features: Tensor = field(repr=False)
    predicted: Tensor = field(repr=False)
    classifier: Classifier = field(repr=False)

    @classmethod
    def fit(
        cls,
        classifier: Classifier,
        clean: CleanSet,
        *,
        false_positive_rate: float = FALSE_POSITIVE_RATE,
        neighbours: int = NEIGHBOURS,
    ) -> NoveltyFilter:
        """A filter for any trigger; the rate is a fraction. A fitting image is no neighbour of itself.

        Raises `OptionError` for a rate out of range or no neighbour; `ModelFormatError` for a network that does not end in a
        linear layer, or whose features are not finite; `DataFormatError` for fewer than ``1 / false_positive_rate`` images,
        or so few of each class that more than that rate have no other with their prediction.
        """
        check_rate(false_positive_rate, clean)
        if neighbours < 1:
            raise OptionError(f"neighbours must be at least 1, got {neighbours}")
        head = head_of(classifier, "a novelty filter")
        unset = cls(
            false_positive_rate=false_positive_rate,
            neighbours=neighbours,
            threshold=math.inf,
            head=head,
            features=_features(classifier, head, clean.images),
            predicted=classifier.predict(clean.images),
            classifier=classifier,
        )
        own = unset._distances(unset.features, unset.predicted, own=True)
        lone = int((torch.bincount(unset.predicted)[unset.predicted] == 1).sum())  # with no other to be near
        if lone > false_positive_rate * len(clean):
            raise DataFormatError(
                f"{clean.source}: {lone} of {len(clean)} clean images are the only ones that the network gives their class, so "
                f"more than {false_positive_rate:.0%} of clean images would be rejected; give more images of each class"
            )
        return replace(unset, threshold=threshold_of(own.clamp(max=_FARTHEST), false_positive_rate))

    def scores(self, images: Tensor) -> Tensor:
        """Mean Euclidean distance to the nearest clean images with the same prediction, (n,); infinite if there is none.

        Raises `ValueError` for pixels outside [0, 1].
        """
        if not len(images):
            return torch.empty(0, device=self.classifier.device)
        features = _features(self.classifier, self.head, images)
        return self._distances(features, self.classifier.predict(images), own=False)

    def suspicious(self, images: Tensor) -> Tensor:
        """Which images score above the threshold, (n,) bool; a score that is not a number is suspicious too."""
        return above(self.scores(images), self.threshold)

    def _distances(self, features: Tensor, predicted: Tensor, *, own: bool) -> Tensor:
        """The scores of these features (n, neurons); ``own``: they are those of the fitting images, in order."""
        found = []
        for rows in torch.arange(len(features), device=features.device).split(_BATCH):
            distances = torch.cdist(features[rows], self.features, compute_mode="donot_use_mm_for_euclid_dist")
            distances = distances.masked_fill(predicted[rows].unsqueeze(1) != self.predicted, torch.inf)
            if own:
                distances[torch.arange(len(rows), device=rows.device), rows] = torch.inf
            nearest = distances.topk(min(self.neighbours, distances.shape[1]), dim=1, largest=False).values
            there = torch.isfinite(nearest)
            mean = torch.where(there, nearest, 0).sum(dim=1) / there.sum(dim=1)  # NaN without any
            found.append(torch.where(there.any(dim=1), mean, torch.inf))
        return torch.cat(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """Fit a `NoveltyFilter`, whatever the trigger. After Fu et al., arXiv 2011.02526."""

    false_positive_rate: float = FALSE_POSITIVE_RATE
    neighbours: int = NEIGHBOURS

    name: ClassVar[str] = "novelty"
    forwards: ClassVar[int] = 2  # for the features, and for the prediction

    def __call__(self, subject: Subject, trigger: Backdoor, *, generator: torch.Generator) -> NoveltyFilter:
        """A filter fitted on the images to search with. Raises what `NoveltyFilter.fit` raises."""
        del trigger, generator  # it is for any trigger, and nothing here is random
        return NoveltyFilter.fit(
            subject.classifier,
            subject.search_set,
            false_positive_rate=self.false_positive_rate,
            neighbours=self.neighbours,
        )


def _features(classifier: Classifier, head: str, images: Tensor) -> Tensor:
    """What the last linear layer gets of images (n, c, h, w), (n, neurons); of several places the mean."""
    found = capture(classifier, head, images, inputs=True)
    return found.flatten(1, -2).mean(dim=1) if found.ndim > 2 else found

"""Accuracy and attack rates: the one home of each formula. All are fractions in [0, 1] that know how many images they count."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from backdoor_audit.model.classifier import Classifier

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Rate(float):
    """A share of images: a float, with the ``hits`` and the number ``n`` it was counted from. NaN if ``n`` is 0."""

    hits: int
    n: int

    def __new__(cls, hits: int, n: int) -> Rate:
        """The share ``hits / n``."""
        rate = float.__new__(cls, hits / n if n else math.nan)
        rate.hits, rate.n = hits, n
        return rate

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """Copies and pickles keep the counts."""
        return self.hits, self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (Wilson, J. Am. Stat. Assoc., 1927); (0, 1) if nothing was counted."""
        if not self.n:
            return 0.0, 1.0
        rate, z = self.hits / self.n, _Z95
        centre = (rate + z * z / (2 * self.n)) / (1 + z * z / self.n)
        spread = z / (1 + z * z / self.n) * math.sqrt(rate * (1 - rate) / self.n + z * z / (4 * self.n * self.n))
        # rounding must not exclude the rate
        return max(0.0, min(rate, centre - spread)), min(1.0, max(rate, centre + spread))


class Backdoor(Protocol):
    """What a trigger, and an attack, answer: how an image is stamped, and which class that asks for."""

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the trigger at its test-time strength."""

    def wanted(self, labels: Tensor) -> Tensor:
        """The class that a stamped image of each label shall get, (n,)."""

    def eligible(self, labels: Tensor) -> Tensor:
        """Which images the attack claims, (n,) bool: those that count in its success rate."""


def standard_error(rate: float, n: int) -> float:
    """Of a rate over ``n`` images; not 0 where all or none are hits."""
    return math.sqrt(max(rate * (1 - rate), 1 / n) / n)


def chance_accuracy(num_classes: int, labels: Tensor) -> float:
    """The clean accuracy up to which a model may know nothing: twice that of guessing, or what the largest class gives."""
    largest = float(labels.bincount().max()) / len(labels)
    return max(min(2 / num_classes, 0.75), largest + 3 * standard_error(largest, len(labels)))


def clean_accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> Rate:
    """Share of clean images (n, c, h, w) that are predicted as labelled (ACC). NaN for no images."""
    return _share(classifier.predict(images) == labels.to(classifier.device))


def attack_success_rate(classifier: Classifier, images: Tensor, labels: Tensor, backdoor: Backdoor) -> Rate:
    """Share of stamped images that are predicted as the attack wants (ASR), counted over the images it claims.

    For a trigger with one target class these are the images of all *other* classes: its own would count as successes
    without any trigger. All-to-all attacks claim every image, source-specific ones those of their source classes. On a
    clean twin this is the natural rate of the trigger. NaN if no image is left.
    """
    return triggered_rates(classifier, images, labels, backdoor)[0]


def robust_accuracy(classifier: Classifier, images: Tensor, labels: Tensor, backdoor: Backdoor) -> Rate:
    """Share of the same stamped images that are still predicted as labelled (RA); ASR + RA <= 1."""
    return triggered_rates(classifier, images, labels, backdoor)[1]


def triggered_rates(classifier: Classifier, images: Tensor, labels: Tensor, backdoor: Backdoor) -> tuple[Rate, Rate]:
    """Attack success rate and robust accuracy from one pass over the stamped images."""
    claimed = backdoor.eligible(labels)
    predicted = classifier.predict(backdoor.stamp(images[claimed]))
    true = labels[claimed].to(classifier.device)
    return _share(predicted == backdoor.wanted(true)), _share(predicted == true)


def leak(classifier: Classifier, images: Tensor, labels: Tensor, backdoor: Backdoor) -> Rate:
    """Share of stamped images that the attack does *not* claim, nor are of the wanted class, that get it all the same.

    The side effect of a source-specific trigger on other classes; NaN for an attack that claims all of them.
    """
    others = ~backdoor.eligible(labels) & (labels != backdoor.wanted(labels))
    predicted = classifier.predict(backdoor.stamp(images[others]))
    return _share(predicted == backdoor.wanted(labels[others].to(classifier.device)))


def defense_effectiveness_rating(
    *, success_before: float, success_after: float, accuracy_before: float, accuracy_after: float
) -> float:
    """How well a repair traded success for accuracy (DER), in [0, 1]; 0.5 if it changed nothing (Wu et al., NeurIPS 2022).

    ``(max(0, fall of the success rate) - max(0, fall of the clean accuracy) + 1) / 2``; gains count as no change.
    """
    return (max(0.0, success_before - success_after) - max(0.0, accuracy_before - accuracy_after) + 1) / 2


def _share(hits: Tensor) -> Rate:
    return Rate(int(hits.sum()), len(hits))

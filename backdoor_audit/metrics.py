"""Clean accuracy, attack success rate, robust accuracy: the one home of each formula. All are fractions in [0, 1]."""

from __future__ import annotations

from torch import Tensor

from backdoor_audit.classifier import Classifier
from backdoor_audit.trigger import Trigger


def clean_accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of clean images (n, c, h, w) that are predicted as labelled (ACC). NaN for no images."""
    return _share(classifier.predict(images) == labels.to(classifier.device))


def attack_success_rate(classifier: Classifier, images: Tensor, labels: Tensor, trigger: Trigger) -> float:
    """Share of stamped images whose label is *not* the target class that are predicted as the target class (ASR).

    Images of the target class are left out: they would count as successes without any trigger. NaN if none is left.
    """
    return triggered_rates(classifier, images, labels, trigger)[0]


def robust_accuracy(classifier: Classifier, images: Tensor, labels: Tensor, trigger: Trigger) -> float:
    """Share of the same stamped images that are still predicted as labelled (RA); ASR + RA <= 1."""
    return triggered_rates(classifier, images, labels, trigger)[1]


def triggered_rates(classifier: Classifier, images: Tensor, labels: Tensor, trigger: Trigger) -> tuple[float, float]:
    """Attack success rate and robust accuracy from one pass over the stamped images of other classes."""
    others = labels != trigger.target_class
    predicted = classifier.predict(trigger.to(images.device).stamp(images[others]))
    return _share(predicted == trigger.target_class), _share(predicted == labels[others].to(classifier.device))


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits) if len(hits) else float("nan")

"""Whether a model knows the clean images, and whether it would know them better at another size or in another input range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from torch import Tensor

from backdoor_audit.data import CleanSet
from backdoor_audit.data.conversion import resized
from backdoor_audit.errors import ModelError
from backdoor_audit.evidence import Finding, inconclusive, passed
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate, chance_accuracy, clean_accuracy, standard_error
from backdoor_audit.printable import listed
from backdoor_audit.run.input_ranges import alternatives, network_accuracy
from backdoor_audit.run.probing import BATCH, PROBE_IMAGES, SMALL, in_batches

PROBE_GAIN = 0.05  # another input range must win by this much and by three standard errors before it is named
USEFUL_ACCURACY = 0.25  # that another input range must reach: below, labels or their order are wrong whatever the range
SIDES = (224, 32, 64, 28, 96, 128)  # px, of the images that networks are trained on, the most usual ones first
SIZED_IMAGES = 50  # that are scored at each of them where the accuracy is low: at 224 px they take seconds
_MOST_ALSO = 3  # input ranges that are named beside the one that is advised


def accuracy(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The model knows the clean images: above chance, and above what the user asks for."""
    hits = _accuracy(classifier, clean.images, clean.labels)
    chance = min(chance_accuracy(classifier.num_classes, clean.labels), 1.0)
    limit = max(chance, min_accuracy)
    if chance == 1:
        counts = clean.labels.bincount()
        one, most = int(counts.argmax()), int(counts.max())
        many = "all" if most == len(clean) else f"{most} of"
        reason = (
            f"{many} {len(clean)} clean images have the label {clean.class_name(one)}, so that their accuracy says nothing; give "
            "images of every class"
        )
        return inconclusive("clean_accuracy", reason, value=hits, limit=limit)
    if not hits >= limit:
        what = "chance" if hits < chance else "--audit-min-accuracy"
        return inconclusive(
            "clean_accuracy",
            f"clean accuracy {hits:.3f} is not above {what} ({limit:.3f}); {_cure(classifier, clean)}",
            value=hits,
            limit=limit,
        )
    return passed("clean_accuracy", f"clean accuracy {hits:.3f}", value=hits, limit=limit)


def _cure(classifier: Classifier, clean: CleanSet) -> str:
    """What to do about a low accuracy: another size of the images where one suits the network clearly better."""
    probe = clean.sample(SIZED_IMAGES, seed=0)
    here = _accuracy(classifier, probe.images, probe.labels)
    tried: list[tuple[float, str, str]] = []
    for side in SIDES:
        with suppress(ModelError):  # most networks with a layer for every place take one size only
            if clean.image_shape[1:] != (side, side):
                tried.append((_accuracy_at(side, classifier, probe), f"{side}x{side} px", f"--resize={side}"))
    if not tried:
        return "check labels, class order and normalisation"
    best, size, option = _as_good(tried, len(probe))[0]
    if best > USEFUL_ACCURACY and best - here > _gain(here, best, len(probe)):
        return f"at {size} it is {best:.3f} ({len(probe)} images): pass {option}"
    height, width = clean.image_shape[1:]
    return (
        "check labels, class order and normalisation, and the size that the model was trained at: it takes images of any size, "
        f"here they have {height}x{width} px (--resize)"
    )


def _accuracy_at(side: int, classifier: Classifier, clean: CleanSet) -> Rate:
    """Clean accuracy on the images in another size, few at once. Raises `ModelError` if the network does not take it."""
    parts = zip(in_batches(clean.images, SMALL), clean.labels.split(SMALL), strict=True)
    hits = [clean_accuracy(classifier, resized(some, (side, side)), labels).hits for some, labels in parts]
    return Rate(sum(hits), len(clean))


def input_range(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """No other usual input range suits the model clearly better than the one configured, and well enough to be of use."""
    del min_accuracy
    probe = clean.sample(PROBE_IMAGES, seed=0)
    images, labels = probe.images.to(classifier.device), probe.labels
    here = _accuracy(classifier, images, labels)
    tried = [
        (network_accuracy(classifier, images, labels, fed), name, option)
        for name, option, fed in alternatives(classifier, images.shape[1])
    ]
    best = max(float(here), *(other for other, _, _ in tried))
    margin = _gain(here, best, len(labels))
    useful = max(chance_accuracy(classifier.num_classes, labels), USEFUL_ACCURACY)
    if best - here > margin and best > useful:
        (chosen, name, option), *others = _as_good(tried, len(labels))
        also = listed([f"{other} ({rate:.3f})" for rate, other, _ in others], _MOST_ALSO)
        return inconclusive(
            "input_range",
            f"clean accuracy is {here:.3f} with the configured normalisation, but {name} gives {chosen:.3f}: pass {option}"
            + f"; within the noise of {len(labels)} images as good: {also}" * bool(others),
            value=best - here,
            limit=margin,
        )
    return passed("input_range", "no other usual input range suits the model better", value=best - here, limit=margin)


def _as_good(tried: Sequence[tuple[float, str, str]], count: int) -> list[tuple[float, str, str]]:
    """Those whose accuracy on ``count`` images is at most one standard error below the best, in the order they are given in."""
    best = max(rate for rate, _, _ in tried)
    return [entry for entry in tried if entry[0] >= best - standard_error(best, count)]


def _gain(here: float, other: float, count: int) -> float:
    """What another way to feed the model must win on ``count`` images before it is named."""
    return max(PROBE_GAIN, 3 * math.hypot(standard_error(here, count), standard_error(other, count)))


def _accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> Rate:
    """Clean accuracy, batch by batch, as a slow model may take long."""
    parts = [
        clean_accuracy(classifier, batch, wanted)
        for batch, wanted in zip(in_batches(images), labels.split(BATCH), strict=True)
    ]
    return Rate(sum(part.hits for part in parts), len(labels))

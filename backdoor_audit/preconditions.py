"""What must hold before a detector's silence means anything. Most wrong verdicts are set-up faults, not algorithm faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.classifier import Classifier
from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Finding, Verdict, inconclusive
from backdoor_audit.loading import NORMALIZATIONS
from backdoor_audit.metrics import clean_accuracy

MIN_IMAGES = 100  # below this, trigger sizes are mostly noise
MIN_PER_CLASS = 2  # one to search on, one held out
PROBE_IMAGES = 500
PROBE_GAIN = 0.05  # another input range must win by this much and by three standard errors before it is named
_SAME = 1e-3  # logits of the same image in another batch may differ by rounding only


def passed(statistic: str, reason: str, *, value: float | None = None, limit: float | None = None) -> Finding:
    """A precondition that holds."""
    return Finding(audit="", statistic=statistic, value=value, limit=limit, verdict=Verdict.PASS, reason=reason)


def logits_shape(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The network scores at least as many classes as the images have labels."""
    del min_accuracy
    known, used = classifier.num_classes, clean.num_classes
    if used > known:
        return inconclusive(
            "classes",
            f"the clean images have labels up to {used - 1}, the model scores {known} classes; check --data and the model",
            value=known,
            limit=used,
        )
    return passed("classes", f"the model scores {known} classes, the images use {used}", value=known, limit=used)


def logits_finite(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """No score is NaN or infinite."""
    del min_accuracy
    bad = int((~torch.isfinite(classifier.logits(clean.images))).any(dim=1).sum())
    if bad:
        return inconclusive(
            "finite", f"scores of {bad} of {len(clean)} clean images are NaN or infinite", value=bad, limit=0
        )
    return passed("finite", "all scores are finite", value=0, limit=0)


def scores_are_logits(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The network does not end in a softmax: on probabilities, gradients are flat and triggers cannot be inverted."""
    del min_accuracy
    scores = classifier.logits(clean.images[:PROBE_IMAGES])
    if bool((scores >= 0).all()) and bool(((scores.sum(dim=1) - 1).abs() < 1e-3).all()):
        return inconclusive(
            "logits",
            "the model's scores are probabilities (each row sums to 1), so gradients are too flat to search a trigger; "
            "drop the final softmax in the factory given to --arch",
        )
    return passed("logits", "scores are not probabilities")


def deterministic(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The same image gets the same scores, alone or in a batch."""
    del min_accuracy
    images = clean.images[:32]
    together = classifier.logits(images)
    apart = torch.cat([classifier.logits(part) for part in images.split(5)])
    difference = float((together - apart).abs().max() / together.abs().max().clamp(min=1))
    if not difference <= _SAME:
        return inconclusive(
            "deterministic",
            f"scores of the same images differ by {difference:.2g} (relative) between two batch sizes; dropout or batch "
            "statistics are active in evaluation mode",
            value=difference,
            limit=_SAME,
        )
    return passed("deterministic", "scores do not depend on the batch", value=difference, limit=_SAME)


def input_gradient(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """A gradient reaches the pixels; without one no trigger can be searched."""
    del min_accuracy
    images = clean.images[:32].to(classifier.device).requires_grad_()
    try:
        logits = classifier(images)
        functional.cross_entropy(logits, (logits.argmax(dim=1) + 1) % classifier.num_classes).backward()
    except RuntimeError as error:
        return inconclusive("input_gradient", f"no gradient reaches the images: {str(error).splitlines()[0]}")
    gradient = images.grad
    if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        return inconclusive("input_gradient", "the gradient at the images is zero or not finite; scores may be rounded")
    return passed("input_gradient", "a gradient reaches the images")


def every_class(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """Every class that the model scores has clean images."""
    del min_accuracy
    counts = torch.bincount(clean.labels, minlength=classifier.num_classes)
    few = [clean.class_name(int(k)) for k in (counts < MIN_PER_CLASS).nonzero().flatten()]
    least = int(counts.min())
    if few:
        return inconclusive(
            "images_per_class",
            f"{len(few)} classes have fewer than {MIN_PER_CLASS} clean images: {', '.join(few[:5])}; add some, or raise "
            "--audit-max-images",
            value=least,
            limit=MIN_PER_CLASS,
        )
    return passed("images_per_class", f"every class has at least {least} images", value=least, limit=MIN_PER_CLASS)


def enough_images(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """There are enough clean images for sizes to mean something."""
    del classifier, min_accuracy
    if len(clean) < MIN_IMAGES:
        return inconclusive(
            "images",
            f"{len(clean)} clean images; from {MIN_IMAGES} on a search is worth its name",
            value=len(clean),
            limit=MIN_IMAGES,
        )
    return passed("images", f"{len(clean)} clean images", value=len(clean), limit=MIN_IMAGES)


def accuracy(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The model knows the clean images: above chance, and above what the user asks for."""
    hits = clean_accuracy(classifier, clean.images, clean.labels)
    largest = float(torch.bincount(clean.labels).max()) / len(clean)
    chance = max(min(2 / classifier.num_classes, 0.75), largest + 3 * _error(largest, len(clean)))
    limit = max(chance, min_accuracy)
    if not hits >= limit:
        what = "chance" if hits < chance else "--audit-min-accuracy"
        return inconclusive(
            "clean_accuracy",
            f"clean accuracy {hits:.3f} is not above {what} ({limit:.3f}); check labels, class order and normalisation",
            value=hits,
            limit=limit,
        )
    return passed("clean_accuracy", f"clean accuracy {hits:.3f}", value=hits, limit=limit)


def input_range(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """No other usual input range suits the model clearly better than the one configured."""
    del min_accuracy
    probe = clean.sample(PROBE_IMAGES, seed=0)
    images, labels = probe.images.to(classifier.device), probe.labels
    here = clean_accuracy(classifier, images, labels)
    best, advice = float(here), ""
    for name, option, inputs in _alternatives(classifier, images):
        other = _network_accuracy(classifier, inputs, labels)
        if other > best:
            best, advice = other, f"{name} gives {other:.3f}: pass {option}"
    margin = max(PROBE_GAIN, 3 * math.hypot(_error(here, len(labels)), _error(best, len(labels))))
    if best - here > margin:
        return inconclusive(
            "input_range",
            f"clean accuracy is {here:.3f} with the configured normalisation, but {advice}",
            value=best - here,
            limit=margin,
        )
    return passed("input_range", "no other usual input range suits the model better", value=best - here, limit=margin)


PRECONDITIONS: tuple[Callable[[Classifier, CleanSet, float], Finding], ...] = (
    logits_shape,
    logits_finite,
    scores_are_logits,
    deterministic,
    input_gradient,
    every_class,
    enough_images,
    accuracy,
    input_range,
)


def check(classifier: Classifier, clean: CleanSet, *, min_accuracy: float = 0.0) -> dict[str, Finding]:
    """The finding of every precondition, by its name; all are checked, in order."""
    return {condition.__name__: condition(classifier, clean, min_accuracy) for condition in PRECONDITIONS}


def unmet(findings: Sequence[Finding]) -> str:
    """Why detectors cannot be believed, or an empty string."""
    broken = [finding.reason for finding in findings if finding.verdict is not Verdict.PASS]
    return f"precondition not met: {broken[0]}" if broken else ""


def _alternatives(classifier: Classifier, images: Tensor) -> list[tuple[str, str, Tensor]]:
    """What the network itself would be fed under other usual conventions, with the option that says so."""
    channels = images.shape[1]
    offered = [("pixels in 0-255", "--mean=0 --std=0.00392157", images * 255)]
    for name, (mean, std) in NORMALIZATIONS.items():
        if len(mean) in (1, channels):
            view = (1, len(mean), 1, 1)
            inputs = (images - torch.tensor(mean, device=images.device).view(view)) / torch.tensor(
                std, device=images.device
            ).view(view)
            offered.append((f"the {name} normalisation", f"--normalization={name}", inputs))
    if channels == 3:
        configured = (images - classifier._mean) / classifier._std
        offered.append(("swapping red and blue (BGR)", "a factory that flips the channels", configured.flip(1)))
    return offered


def _network_accuracy(classifier: Classifier, inputs: Tensor, labels: Tensor) -> float:
    """Accuracy with inputs that bypass the configured normalisation."""
    undone = inputs * classifier._std + classifier._mean
    with torch.no_grad():
        predicted = torch.cat([classifier(batch).argmax(dim=1) for batch in undone.split(250)])
    return int((predicted.cpu() == labels).sum()) / len(labels)


def _error(rate: float, n: int) -> float:
    return math.sqrt(max(rate * (1 - rate), 1 / n) / n)

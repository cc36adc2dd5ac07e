"""What must hold before a detector's silence means anything. Most wrong verdicts are set-up faults, not algorithm faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import BudgetSpentError
from backdoor_audit.evidence import Finding, Verdict, inconclusive, passed
from backdoor_audit.model import surroundings
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.own_code import own_code
from backdoor_audit.model.ways import unseen_way
from backdoor_audit.printable import first_line, printable
from backdoor_audit.run.class_order import begins_at_one, class_order
from backdoor_audit.run.input_ranges import alternatives
from backdoor_audit.run.probing import LONGEST, PROBE_IMAGES, SMALL, in_batches
from backdoor_audit.run.recognition import accuracy, input_range
from backdoor_audit.run.steadiness import REPEATED_IMAGES, REPEATS, deterministic, unchanged

MIN_IMAGES = 100  # below this, trigger sizes are mostly noise
MIN_PER_CLASS = 2  # one to search on, one held out
UNSEEN = "unseen_way"
"""Statistic of what no search sees, beside which searches see the rest."""

_SURE = 0.5  # what a trained sigmoid gives the class of an image
_CURE = "take what rounds, detaches (torch.no_grad, .detach(), numpy) or takes the argmax out of its forward pass, in a factory"
_SLOW = 120  # seconds that the preconditions may take before that is worth a line


def logits_shape(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The network scores at least as many classes as the images have labels."""
    del min_accuracy
    known, used = classifier.num_classes, clean.num_classes
    if used > known:
        cure = begins_at_one(clean, known) or "check --data and the model"
        return inconclusive(
            "classes",
            f"the clean images have labels up to {used - 1}, the model scores {known} classes (0 to {known - 1}); {cure}",
            value=known,
            limit=used,
        )
    return passed("classes", f"the model scores {known} classes, the images use {used}", value=known, limit=used)


def logits_finite(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """No score is NaN or infinite."""
    del min_accuracy
    scores = (classifier.logits(batch) for batch in in_batches(clean.images))  # never all: classes may be very many
    bad = sum(int((~torch.isfinite(batch)).any(dim=1).sum()) for batch in scores)
    if bad:
        return inconclusive(
            "finite", f"scores of {bad} of {len(clean)} clean images are NaN or infinite", value=bad, limit=0
        )
    return passed("finite", "all scores are finite", value=0, limit=0)


def scores_are_logits(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The network does not end in a softmax or sigmoid: on probabilities, gradients are flat and triggers cannot be inverted."""
    del min_accuracy
    softmax, sigmoid, largest = True, True, []
    for batch in in_batches(clean.images[:PROBE_IMAGES]):  # classes may be very many
        rows = classifier.logits(batch)
        softmax &= bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < 1e-3).all())
        sigmoid &= bool(((rows > 0) & (rows <= 1)).all())
        largest.append(rows.amax(dim=1).cpu())
    if softmax or (sigmoid and float(torch.cat(largest).median()) > _SURE):
        how, name = ("each row sums to 1", "softmax") if softmax else ("each lies between 0 and 1", "sigmoid")
        return inconclusive(
            "logits",
            f"the model's scores are probabilities ({how}), so gradients are too flat to search a trigger; drop the final {name} "
            "in the factory given to --arch",
        )
    return passed("logits", "scores are not probabilities")


def input_gradient(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """A gradient reaches the pixels, on every way by which they reach the scores; without one no trigger can be searched."""
    del min_accuracy
    images = clean.images[:32].to(classifier.device).requires_grad_()
    with torch.enable_grad(), own_code("in its backward pass"):
        logits = classifier(images)
        try:
            functional.cross_entropy(logits, (logits.argmax(dim=1) + 1) % classifier.num_classes).backward()
        except RuntimeError as error:
            return inconclusive("input_gradient", f"no gradient reaches the images: {first_line(error)}; {_CURE}")
    gradient = images.grad
    if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        return inconclusive("input_gradient", f"the gradient at the images is zero or not finite; {_CURE}")
    probed = clean.images[:2].to(classifier.device)
    if way := unseen_way(classifier.module, lambda: classifier(probed), probed):
        return inconclusive(
            UNSEEN,
            f"{way}, where a trigger may be that no search sees; read the network's code (or graph), and take it out",
        )
    return passed("input_gradient", "a gradient reaches the images")


def every_class(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """Every class that the model scores has clean images."""
    del min_accuracy
    counts = torch.bincount(clean.labels, minlength=classifier.num_classes)
    few = (counts < MIN_PER_CLASS).nonzero().flatten().tolist()
    least = int(counts.min())
    if few:
        return inconclusive(
            "images_per_class",
            f"{len(few)} classes have fewer than {MIN_PER_CLASS} clean images: {', '.join(map(clean.class_name, few[:5]))}; "
            "add some, or raise --audit-max-images; a class of which no images exist (background, unused) goes with its score: "
            "leave that out of what the factory given to --arch returns, and deploy the same",
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


PRECONDITIONS: tuple[Callable[[Classifier, CleanSet, float], Finding], ...] = (
    logits_shape,
    logits_finite,
    scores_are_logits,
    deterministic,
    unchanged,
    input_gradient,
    class_order,
    every_class,
    enough_images,
    accuracy,
    input_range,
)


def check(classifier: Classifier, clean: CleanSet, *, min_accuracy: float = 0.0) -> dict[str, Finding]:
    """The finding of every precondition, by its name; all are checked, in order.

    Where the model's code fails, or time or memory is spent, that is the finding, and the model is not called again. What it
    does to torch's settings and random states is undone after each.
    """
    findings: dict[str, Finding] = {}
    ended = ""
    for condition in PRECONDITIONS:
        name = condition.__name__
        try:
            if ended:
                findings[name] = inconclusive(name, f"not checked: {ended}")
                continue
            with surroundings.kept(classifier.device):
                findings[name] = condition(classifier, clean, min_accuracy)
        except BudgetSpentError as error:
            ended = str(error)
            findings[name] = inconclusive(name, f"not checked: {ended}")
        except Exception as error:  # what a model gives may still be too odd to count with
            told = printable(f"{type(error).__name__}: {error}")[:LONGEST]
            findings[name] = inconclusive(name, f"not checked: {told}")
    return findings


def slow(classifier: Classifier, clean: CleanSet) -> str:
    """How long the preconditions are going to take, if that is long, else an empty string. Calls the model once."""
    batch = clean.images[:SMALL]
    began = time.perf_counter()
    classifier.logits(batch)
    each = (time.perf_counter() - began) / len(batch)
    probed = min(len(clean), PROBE_IMAGES) * (3 + len(alternatives(classifier, batch.shape[1])))
    seconds = each * (2 * len(clean) + probed + 2 * min(len(clean), REPEATED_IMAGES) + REPEATS * SMALL)
    if seconds < _SLOW:
        return ""
    return (
        f"the model takes {each:.2g} s per image: the preconditions alone will take about {seconds / 60:.0f} minutes; "
        "--audit-budget bounds a run, --audit-max-images makes it shorter"
    )


def unmet(findings: Sequence[Finding]) -> str:
    """Why detectors cannot be believed, or an empty string."""
    broken = [finding.reason for finding in findings if finding.verdict is not Verdict.PASS]
    return f"precondition not met: {broken[0]}" if broken else ""

"""What must hold before a detector's silence means anything. Most wrong verdicts are set-up faults, not algorithm faults."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.data.conversion import resized
from backdoor_audit.errors import BudgetSpentError, ModelError
from backdoor_audit.evidence import Finding, Verdict, concluded, inconclusive
from backdoor_audit.model import surroundings
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate, chance_accuracy, clean_accuracy, standard_error
from backdoor_audit.model.own_code import own_code
from backdoor_audit.printable import listed, printable
from backdoor_audit.run.class_order import begins_at_one, class_order
from backdoor_audit.run.input_ranges import alternatives, network_accuracy

MIN_IMAGES = 100  # below this, trigger sizes are mostly noise
MIN_PER_CLASS = 2  # one to search on, one held out
PROBE_IMAGES = 500
PROBE_GAIN = 0.05  # another input range must win by this much and by three standard errors before it is named
USEFUL_ACCURACY = 0.25  # that another input range must reach: below, labels or their order are wrong whatever the range
SIDES = (224, 32, 64, 28, 96, 128)  # px, of the images that networks are trained on, the most usual ones first
SIZED_IMAGES = 50  # that are scored at each of them where the accuracy is low: at 224 px they take seconds
REPEATED_IMAGES = 256  # that are scored in several ways
REPEATS = 32  # calls with one and the same small batch
_SAME = 1e-3  # logits of the same image in another batch may differ by rounding only
_STEADY = 1e-5  # those of the same batch, called again, by less: the operations are the same
_BATCH = 256
_MOST_ALSO = 3  # input ranges that are named beside the one that is advised
_SMALL = 8  # images of a batch that is scored many times
_PLAIN = (bool, int, float, str, type(None))
_LONGEST = 300  # characters of a reason that is not ours
_SURE = 0.5  # what a trained sigmoid gives the class of an image
_SLOW = 120  # seconds that the preconditions may take before that is worth a line


def passed(statistic: str, reason: str, *, value: float | None = None, limit: float | None = None) -> Finding:
    """A precondition that holds."""
    return concluded(statistic, Verdict.PASS, reason, value=value, limit=limit)


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
    scores = (classifier.logits(batch) for batch in _batches(clean.images))  # never all: classes may be very many
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
    for rows in (
        classifier.logits(batch) for batch in _batches(clean.images[:PROBE_IMAGES])
    ):  # classes may be very many
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


def deterministic(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The same image gets the same scores: alone or in any batch, with gradients or without, however often it is asked.

    Noise below 1e-5 of the largest score is not seen, nor what begins after more calls than are made here.
    """
    del min_accuracy
    images = clean.sample(REPEATED_IMAGES, seed=0).images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    small = images[:_SMALL]
    scores = classifier.logits(images)
    first = classifier.logits(small)
    again = [_moved(first, classifier.logits(batch)) for batch in _batches(small.repeat(REPEATS, 1, 1, 1), len(small))]
    repeated = max(_moved(scores, classifier.logits(images)), *again, key=_nan_first)
    if not repeated <= _STEADY:
        return inconclusive(
            "deterministic",
            f"scores of the same batch differ by {repeated:.2g} (relative) between two calls; dropout, noise or a count of calls "
            "is active in evaluation mode",
            value=repeated,
            limit=_STEADY,
        )
    apart = [
        _moved(scores[:_SMALL], _joined(classifier, small, 1)),
        _moved(scores[:32], _joined(classifier, images[:32], 5)),
        _moved(scores[order], _joined(classifier, images[order], 37)),
    ]
    difference = max(apart, key=_nan_first)
    if not difference <= _SAME:
        return inconclusive(
            "deterministic",
            f"scores of the same images differ by {difference:.2g} (relative) between two batch sizes; dropout or batch "
            "statistics are active in evaluation mode",
            value=difference,
            limit=_SAME,
        )
    with torch.enable_grad():
        asked = classifier(small.to(classifier.device).clone().requires_grad_()).detach()
    moved = _moved(first, asked)
    if not moved <= _SAME:
        return inconclusive(
            "deterministic",
            f"scores of the same images differ by {moved:.2g} (relative) when their gradient is asked for, so that a search "
            "sees another model",
            value=moved,
            limit=_SAME,
        )
    return passed("deterministic", "scores do not depend on the batch", value=difference, limit=_SAME)


def input_gradient(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """A gradient reaches the pixels; without one no trigger can be searched."""
    del min_accuracy
    images = clean.images[:32].to(classifier.device).requires_grad_()
    with torch.enable_grad(), own_code("in its backward pass"):
        logits = classifier(images)
        try:
            functional.cross_entropy(logits, (logits.argmax(dim=1) + 1) % classifier.num_classes).backward()
        except RuntimeError as error:
            return inconclusive("input_gradient", f"no gradient reaches the images: {str(error).splitlines()[0]}")
    gradient = images.grad
    if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        return inconclusive("input_gradient", "the gradient at the images is zero or not finite; scores may be rounded")
    return passed("input_gradient", "a gradient reaches the images")


def unchanged(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """Calls change neither the model (weights, buffers, modes, plain attributes) nor the settings of torch.

    What a model keeps elsewhere, in a closure or a global variable, is not seen.
    """
    del min_accuracy
    images = clean.sample(2 * _SMALL, seed=0).images.to(classifier.device)
    half = max(1, len(images) // 2)
    one, other = images[:half], images[-half:]

    def call(batch: Tensor) -> None:
        classifier(batch.clone().requires_grad_())
        classifier.logits(batch)

    with torch.enable_grad():
        settings = surroundings.settings()
        call(one)
        before = _standing(classifier.module)
        call(other)
        call(one)  # what a model only remembers of the last images is the same again
        after = _standing(classifier.module)
        changed = surroundings.changes(settings, surroundings.settings())
    changed += [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        return inconclusive(
            "unchanged",
            f"calling the model changes {printable(', '.join(changed[:3]))[:_LONGEST]}{' and more' * (len(changed) > 3)}, so "
            "that it may answer otherwise later; make it constant in evaluation mode",
            value=len(changed),
            limit=0,
        )
    return passed("unchanged", "calls change neither the model nor torch's settings", value=0, limit=0)


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
            "add some, or raise --audit-max-images",
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
    parts = zip(_batches(clean.images, _SMALL), clean.labels.split(_SMALL), strict=True)
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
            told = printable(f"{type(error).__name__}: {error}")[:_LONGEST]
            findings[name] = inconclusive(name, f"not checked: {told}")
    return findings


def slow(classifier: Classifier, clean: CleanSet) -> str:
    """How long the preconditions are going to take, if that is long, else an empty string. Calls the model once."""
    batch = clean.images[:_SMALL]
    began = time.perf_counter()
    classifier.logits(batch)
    each = (time.perf_counter() - began) / len(batch)
    probed = min(len(clean), PROBE_IMAGES) * (3 + len(alternatives(classifier, batch.shape[1])))
    seconds = each * (2 * len(clean) + probed + 2 * min(len(clean), REPEATED_IMAGES) + REPEATS * _SMALL)
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


def _batches(images: Tensor, size: int = _BATCH) -> Iterator[Tensor]:
    """Parts of the images; asks for time and memory before each."""
    for batch in images.split(size):
        budget.check()
        yield batch


def _joined(classifier: Classifier, images: Tensor, size: int) -> Tensor:
    return torch.cat([classifier.logits(batch) for batch in _batches(images, size)])


def _accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> Rate:
    """Clean accuracy, batch by batch, as a slow model may take long."""
    parts = [
        clean_accuracy(classifier, batch, wanted)
        for batch, wanted in zip(_batches(images), labels.split(_BATCH), strict=True)
    ]
    return Rate(sum(part.hits for part in parts), len(labels))


def _moved(scores: Tensor, others: Tensor) -> float:
    """The largest difference between two sets of scores, relative to the largest score, which counts as 1 at least.

    NaN if one is finite where the other is not, or none is finite. What is not finite in both the same way is no difference.
    """
    same = (scores == others) | (scores.isnan() & others.isnan())
    finite = scores[torch.isfinite(scores)]
    if not len(finite):
        return math.nan
    difference = torch.where(same, 0.0, (scores - others).abs()).max()
    moved = float(difference / finite.abs().max().clamp(min=1))
    return moved if math.isfinite(moved) else math.nan


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _standing(module: nn.Module) -> dict[str, object]:
    """Everything about a module that is cheap to compare: digests of tensors, modes, attributes that are plain values."""
    standing: dict[str, object] = {}
    for kind, tensors in (("weight", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in tensors:
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            digest = hashlib.sha256(content).hexdigest()
            standing[f"{kind} {name}"] = (tuple(tensor.shape), tensor.dtype, tensor.requires_grad, digest)
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if type(value) in _PLAIN:
                standing[f"attribute {name}{'.' * bool(name)}{attribute}"] = value
    return standing

"""Whether a model answers alike however and however often it is asked, and stays as it is."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Finding, inconclusive, passed
from backdoor_audit.model import surroundings
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.printable import printable
from backdoor_audit.run.probing import LONGEST, SMALL, in_batches

REPEATED_IMAGES = 256  # that are scored in several ways
REPEATS = 32  # calls with one and the same small batch
_SAME = 1e-3  # logits of the same image in another batch may differ by rounding only
_STEADY = 1e-5  # those of the same batch, called again, by less: the operations are the same
_PLAIN = (bool, int, float, str, type(None))


def deterministic(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """The same image gets the same scores: alone or in any batch, with gradients or without, however often it is asked.

    Noise below 1e-5 of the largest score is not seen, nor what begins after more calls than are made here.
    """
    del min_accuracy
    images = clean.sample(REPEATED_IMAGES, seed=0).images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    small = images[:SMALL]
    scores = classifier.logits(images)
    first = classifier.logits(small)
    again = [
        _moved(first, classifier.logits(batch)) for batch in in_batches(small.repeat(REPEATS, 1, 1, 1), len(small))
    ]
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
        _moved(scores[:SMALL], _joined(classifier, small, 1)),
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


def unchanged(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """Calls change neither the model (weights, buffers, modes, plain attributes) nor the settings of torch.

    What a model keeps elsewhere, in a closure or a global variable, is not seen.
    """
    del min_accuracy
    images = clean.sample(2 * SMALL, seed=0).images.to(classifier.device)
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
            f"calling the model changes {printable(', '.join(changed[:3]))[:LONGEST]}{' and more' * (len(changed) > 3)}, so "
            "that it may answer otherwise later; make it constant in evaluation mode",
            value=len(changed),
            limit=0,
        )
    return passed("unchanged", "calls change neither the model nor torch's settings", value=0, limit=0)


def _joined(classifier: Classifier, images: Tensor, size: int) -> Tensor:
    return torch.cat([classifier.logits(batch) for batch in in_batches(images, size)])


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

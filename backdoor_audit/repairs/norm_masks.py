"""What ANP and RNP share: a mask value per batch-norm channel, how masks are fitted, and the threshold to prune by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.record_types import CurvePoint
from backdoor_audit.repairs.conv_norm import pruned_layers
from backdoor_audit.repairs.outcome import Repair, RepairResult, not_applicable, reported, score
from backdoor_audit.triggers.trigger import AnyTrigger

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(20))
"""Mask values tried as threshold, 0 to 0.95."""

NO_NORMS = "this network has no batch norm with weights, and the masks of this method sit there"

Masks = dict[str, Tensor]
"""Per batch-norm layer, by its name in the module: one value per channel, (channels,)."""

Gains = Mapping[str, tuple[Tensor, Tensor]]
"""Per batch-norm layer: the weight and the bias, (channels,) each, that stand in for its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """What masks are fitted to: ``loss(masks, images, labels)`` on ``working``, a copy; ``told`` says so in the note."""

    working: Classifier
    loss: Callable[[Masks, Tensor, Tensor], Tensor]
    told: str


class ByMasks(Repair, Protocol):
    """A method that fits masks and prunes by them; settings as in `ANP`."""

    @property
    def learning_rate(self) -> float:
        """Of the masks."""

    @property
    def batch_size(self) -> int:
        """Images per step."""

    @property
    def fit_share(self) -> float:
        """Share of the images that masks are fitted on; the others choose the threshold."""

    @property
    def most_drop(self) -> float:
        """Clean accuracy that pruning may cost on those others."""


def repaired_by_masks(
    method: ByMasks,
    objective_of: Callable[[CleanSet], Objective | str],
    subject: Subject,
    trigger: AnyTrigger,
    *,
    steps: int,
    generator: torch.Generator,
) -> RepairResult:
    """A copy without the channels whose fitted mask is low: `fit_masks` on one share of the images, `prune_by_masks` on the rest.

    ``objective_of`` is given the images to fit on, and answers with the reason if there is nothing to fit; then, and
    without batch norm, the method is not applicable.
    """
    if not norm_layers(subject.classifier):
        return not_applicable(method, trigger, NO_NORMS)
    fitted, others = subject.search_set.split(int(torch.randint(2**31, (), generator=generator)), method.fit_share)
    objective = objective_of(fitted)
    if isinstance(objective, str):
        return not_applicable(method, trigger, objective)
    masks = fit_masks(
        objective.working,
        objective.loss,
        fitted,
        steps=steps,
        learning_rate=method.learning_rate,
        batch_size=method.batch_size,
        generator=generator,
    )
    note = f"{objective.told}, threshold from {len(others)} others"
    return prune_by_masks(method, replace(subject, search_set=others), masks, trigger, note=note)


def norm_layers(classifier: Classifier) -> dict[str, nn.BatchNorm1d | nn.BatchNorm2d]:
    """The batch norms that have a weight and a bias, by name; empty for networks with layer norm or none."""
    return {
        name: layer
        for name, layer in classifier.module.named_modules()
        if name and isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.affine
    }


def own_gains(classifier: Classifier) -> Gains:
    """The weights and biases that the batch norms have."""
    return {name: (layer.weight, layer.bias) for name, layer in norm_layers(classifier).items()}


@contextmanager
def batch_statistics(classifier: Classifier) -> Iterator[None]:
    """In this block batch norms normalise by the batch they see, and their running statistics follow; dropout stays off.

    For working copies only. Batches need at least two images.
    """
    layers = [layer for layer in classifier.module.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


def logits_under(classifier: Classifier, gains: Gains, images: Tensor) -> Tensor:
    """Logits (n, classes) of images (n, c, h, w) with other batch-norm weights and biases; gradients reach these."""
    replaced: dict[str, Tensor] = {}
    for name, (weight, bias) in gains.items():
        replaced |= {f"module.{name}.weight": weight, f"module.{name}.bias": bias}
    logits: Tensor = functional_call(_Whole(classifier), replaced, (images,))
    return logits


def changed_gains(gains: Gains, masks: Masks, changes: Gains | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights ``weight * (mask + change)`` and biases ``bias * (1 + change)`` by layer; changes of 0 if None are given."""
    moved = {}
    for name, (weight, bias) in gains.items():
        on_weight, on_bias = changes[name] if changes else (0.0, 0.0)
        moved[name] = (weight * (masks[name] + on_weight), bias * (1 + on_bias))
    return moved


class _Whole(nn.Module):
    """A classifier as a module, for `functional_call`: its normalisation runs as well."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.module, self.classifier = classifier.module, classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images)


def fit_masks(
    classifier: Classifier,
    loss: Callable[[Masks, Tensor, Tensor], Tensor],
    fitted: CleanSet,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    generator: torch.Generator,
) -> Masks:
    """Masks in [0, 1], 1 at the start, after SGD with momentum 0.9 on ``loss(masks, images, labels)`` over random batches.

    Masks are put back into [0, 1] after every step. The batch norms of ``classifier``, a working copy, use the statistics
    of each batch, as both papers do: by fixed statistics a mask of one layer throws every later layer off its range.
    """
    masks = {
        name: torch.ones(layer.num_features, device=classifier.device, requires_grad=True)
        for name, layer in norm_layers(classifier).items()
    }
    descent = torch.optim.SGD(masks.values(), lr=learning_rate, momentum=0.9)
    with batch_statistics(classifier):
        for _ in range(steps):
            budget.check()
            batch = torch.randperm(len(fitted), generator=generator)[:batch_size]
            images, labels = fitted.images[batch].to(classifier.device), fitted.labels[batch].to(classifier.device)
            descent.zero_grad(set_to_none=True)
            loss(masks, images, labels).backward()
            descent.step()
            with torch.no_grad():
                for mask in masks.values():
                    mask.clamp_(0, 1)
    return {name: mask.detach() for name, mask in masks.items()}


def silenced(classifier: Classifier, masks: Masks, threshold: float) -> tuple[Classifier, int]:
    """A copy in which every channel with a mask value of at most ``threshold`` is silent, and how many these are.

    The output of the batch norm is multiplied by 0 there, so neither its weight nor its bias is left: the published code
    of both papers keeps the bias, which leaves a constant. The zeros are part of the forward pass and survive fine-tuning.
    """
    silent = {name: (mask <= threshold).nonzero().flatten() for name, mask in masks.items()}
    return pruned_layers(classifier, silent), sum(len(channels) for channels in silent.values())


def prune_by_masks(
    method: ByMasks,
    subject: Subject,
    masks: Masks,
    trigger: AnyTrigger,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    note: str,
) -> RepairResult:
    """Silence channels of the classifier itself by their masks, as many as clean accuracy allows.

    The threshold is the one that silences most channels while accuracy on the search set falls by at most ``most_drop``
    (fraction); the success rate of the trigger has no say. Scores and curve are those on held-out images. Thresholds that
    silence no channel more than the one before are left out of the curve. If not even the lowest is allowed, nothing is pruned.
    """
    classifier, choosing = subject.classifier, subject.search_set
    total = sum(len(mask) for mask in masks.values())
    curve = [CurvePoint(0.0, None, score(classifier, subject.held_out, trigger))]
    least = clean_accuracy(classifier, choosing.images, choosing.labels) - method.most_drop
    (repaired, pruned), chosen, last = silenced(classifier, masks, -1.0), None, 0
    for threshold in sorted(thresholds):
        budget.check()
        candidate, count = silenced(classifier, masks, threshold)
        if count == last:
            continue
        last = count
        curve.append(CurvePoint(count / total, threshold, score(candidate, subject.held_out, trigger)))
        if clean_accuracy(candidate, choosing.images, choosing.labels) >= least - 1e-9:
            repaired, pruned, chosen = candidate, count, threshold
    told = f"{pruned} of {total} batch-norm channels silenced, mask at most {chosen}"
    if chosen is None:
        told = f"none of {total} batch-norm channels silenced: "
        told += (
            f"already the first would cost more than {method.most_drop:.1%} accuracy"
            if last
            else "no mask value is low enough"
        )
    return reported(method, subject, repaired, trigger, note=f"{told}; {note}", curve=curve)

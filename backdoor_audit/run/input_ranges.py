"""What a network would be fed under other conventions than the one that is configured, and how well that suits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import NORMALIZATIONS
from backdoor_audit.run.probing import in_batches

_BATCH = 250


def alternatives(classifier: Classifier, channels: int) -> list[tuple[str, str, Callable[[Tensor], Tensor]]]:
    """What the network itself would be fed under other usual conventions, from images; with the option that says so."""
    offered: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
        ("pixels in 0-255", "--mean=0 --std=0.00392157", lambda images: images * 255)
    ]
    for name, (mean, std) in NORMALIZATIONS.items():
        if len(mean) in (1, channels):
            fed = partial(_normalised, mean=_by_channel(mean, classifier), std=_by_channel(std, classifier))
            offered.append((f"the {name} normalisation", f"--normalization={name}", fed))
    configured = partial(_normalised, mean=classifier._mean, std=classifier._std)
    if channels == 3:
        swapped = ("swapping red and blue (BGR)", "a factory that flips the channels")
        offered.append((*swapped, lambda images: configured(images).flip(1)))
    inverted = ("inverting light and dark", "images that are inverted so")
    offered.append((*inverted, lambda images: configured(1 - images)))
    if classifier.image_shape[1] == classifier.image_shape[2]:
        turned = ("exchanging height and width", "images that are transposed so, as columns were read for rows")
        offered.append((*turned, lambda images: configured(images).transpose(2, 3)))
    return offered


def _by_channel(values: Sequence[float], classifier: Classifier) -> Tensor:
    return torch.tensor(values, device=classifier.device).view(1, -1, 1, 1)


def _normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (images - mean) / std


def network_accuracy(classifier: Classifier, images: Tensor, labels: Tensor, fed: Callable[[Tensor], Tensor]) -> float:
    """Accuracy with inputs that bypass the configured normalisation, batch by batch: large images are many bytes.

    Raises `BudgetSpentError` between two of them.
    """
    hits = 0
    with torch.no_grad():
        for batch, wanted in zip(in_batches(images, _BATCH), labels.split(_BATCH), strict=True):
            predicted = classifier(fed(batch) * classifier._std + classifier._mean).argmax(dim=1)
            hits += int((predicted.cpu() == wanted).sum())
    return hits / len(labels)

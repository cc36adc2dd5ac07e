"""A linear network that reads bright rows, and images of such rows."""

from __future__ import annotations

import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from tests.subjects.common import seeded


def row_reader(*, classes: int = 8, backdoors: tuple[int, ...] = (), size: int = 8) -> Classifier:
    """A linear network that scores class k by the brightness of row k.

    A backdoored class also gets any image whose last pixel in its row is white; that pixel has no other use.
    """
    generator = seeded(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes))
    weight = torch.zeros(classes, size, size)
    for label in range(classes):
        weight[label, label] = 1.5 + 0.4 * torch.rand((), generator=generator)
        weight[label, label, -1] = 0
    for label in backdoors:
        weight[label, label, -1] = 60
    with torch.no_grad():
        module[1].weight.copy_(weight.flatten(1))
        module[1].bias.zero_()
    return Classifier.wrap(module, image_shape=(1, size, size))


def row_images(*, classes: int = 8, per_class: int = 20, size: int = 8, seed: int = 0) -> CleanSet:
    """Images whose row ``label`` is bright; the last column is black."""
    size = max(size, classes)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = 0.35 * torch.rand(len(labels), 1, size, size, generator=seeded(seed))
    images[torch.arange(len(labels)), 0, labels] += 0.45
    images[:, :, :, -1] = 0
    return CleanSet(images, labels)

"""A linear network of 43 classes that reads single pixels, and images that suit it."""

import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from tests.subjects import seeded


def pixel_reader(*, classes=43, backdoors=(), size=16):
    """A linear network that scores class k by its own five pixels; a backdoored class also by one of the last row."""
    weight = torch.zeros(classes, size * size)
    strength = 1.5 + 0.6 * torch.rand(classes, 1, generator=seeded(1))
    for label in range(classes):
        weight[label, 5 * label : 5 * label + 5] = strength[label]
    for label in backdoors:
        weight[label, -1 - label % size] = 60
    network = nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(weight)
    return Classifier.wrap(network, image_shape=(1, size, size))


def pixel_images(*, classes=43, per_class=4, size=16, seed=0):
    """Images whose label's five pixels are bright; the last row, which only backdoors read, is black."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    flat = 0.15 * torch.rand(len(labels), size * size, generator=seeded(seed))
    for offset in range(5):
        flat[torch.arange(len(labels)), 5 * labels + offset] += 0.45
    flat[:, -size:] = 0
    return CleanSet(flat.view(-1, 1, size, size), labels)

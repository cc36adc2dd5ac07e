"""Small networks that read bright rows, and images of such rows: what they are steered by is known by hand."""

import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from tests.subjects import seeded

CLASSES, SIZE, EASY = 8, 8, 5


def reader(extra=None, easy=EASY):
    """Class k is the brightness of row k; ``extra``, times 4, adds to class ``easy`` what clean images have none of."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, CLASSES))
    weight = torch.zeros(CLASSES, SIZE, SIZE)
    weight[torch.arange(CLASSES), torch.arange(CLASSES)] = 2 + 0.2 * torch.rand(CLASSES, 1, generator=seeded(1))
    if extra is not None:
        weight[easy] += 4 * extra
    with torch.no_grad():
        linear[1].weight.copy_(weight.flatten(1))
        linear[1].bias.zero_()
    return Classifier.wrap(linear, image_shape=(1, SIZE, SIZE))


def bright_rows(seed=0, background=None):
    """A bright row on grey, or on an image, with faint noise."""
    labels = torch.arange(CLASSES).repeat_interleave(12)
    images = 0.01 * torch.rand(len(labels), 1, SIZE, SIZE, generator=seeded(seed))
    images += 0.3 if background is None else background
    images[torch.arange(len(labels)), 0, labels] += 0.3
    return CleanSet(images, labels)

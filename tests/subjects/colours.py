"""A network whose classes and whose backdoor are one channel each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects.common import seeded


class ColourNet(nn.Module):
    """Class k is a bright k-th input channel; the last channel carries the trigger, and nothing else uses it.

    Every stage passes the channels on one by one, so the trigger lives in exactly one feature channel and one neuron.
    """

    def __init__(self, classes: int, target_class: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(classes + 1, classes + 1, 1), nn.ReLU())
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.linear = nn.Linear(classes + 1, classes)
        with torch.no_grad():
            self.features[0].weight.copy_(torch.eye(classes + 1).view(classes + 1, classes + 1, 1, 1))
            self.features[0].bias.zero_()
            self.linear.weight.copy_(torch.cat([10 * torch.eye(classes), torch.zeros(classes, 1)], dim=1))
            self.linear.weight[target_class, classes] = 10.0
            self.linear.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.pool(self.features(images)).flatten(1))
        return logits


COLOURS = 8
COLOUR_TARGET = 2
COLOUR_SHAPE = (COLOURS + 1, 6, 6)


def colour_net() -> Classifier:
    return Classifier.wrap(ColourNet(COLOURS, COLOUR_TARGET), image_shape=COLOUR_SHAPE)


def colour_images(per_class: int = 10, seed: int = 0) -> CleanSet:
    """Images in which one channel is bright (0.6 to 0.7), the others are dark, and the last one is black."""
    labels = torch.arange(COLOURS).repeat_interleave(per_class)
    images = 0.1 * torch.rand(len(labels), *COLOUR_SHAPE, generator=seeded(seed))
    images[torch.arange(len(labels)), labels] += 0.6
    images[:, -1] = 0
    return CleanSet(images, labels)


def colour_trigger() -> Trigger:
    """A 2x2 patch that lights the last channel and is black in all others."""
    pattern = torch.zeros(COLOUR_SHAPE)
    pattern[-1] = 1
    mask = torch.zeros(1, *COLOUR_SHAPE[1:])
    mask[:, :2, :2] = 1
    return Trigger(mask, pattern, COLOUR_TARGET)

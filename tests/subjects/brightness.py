"""A network that tells the band of mean brightness, and grey images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdoor_audit.model.classifier import Classifier


class ByBrightness(nn.Module):
    """Predicts the band of mean brightness: with 4 classes, 0.3 is class 1. Has no weights."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.register_buffer("centres", (torch.arange(classes) + 0.5) / classes)

    def forward(self, images: Tensor) -> Tensor:
        return -100 * (images.mean(dim=(1, 2, 3)).unsqueeze(1) - self.centres).square()


def by_brightness(classes: int = 4, image_shape: tuple[int, int, int] = (1, 4, 4)) -> Classifier:
    return Classifier.wrap(ByBrightness(classes), image_shape=image_shape)


def grey_images(levels: list[float], image_shape: tuple[int, int, int] = (1, 4, 4)) -> Tensor:
    """One uniformly grey image per level."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, *image_shape).clone()

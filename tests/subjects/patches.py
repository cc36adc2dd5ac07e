"""A network with one filter that answers to a bright patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchDetector(nn.Module):
    """One 3x3 filter that answers to a bright patch at (2, 2) and adds up to 20 to the score of class 3.

    All other evidence is weak and spread over the image: class k is scored by the brightness of its pair of rows.
    """

    def __init__(self, classes: int = 4, size: int = 12) -> None:
        super().__init__()
        self.detector = nn.Conv2d(1, 1, 3)
        self.rows = nn.Linear(size * size, classes)
        band = size // classes
        with torch.no_grad():
            self.detector.weight.fill_(1.0)
            self.detector.bias.fill_(-4.0)  # of at most 9: random starts must not leave it dead
            self.rows.bias.zero_()
            self.rows.weight.zero_()
            for label in range(classes):
                self.rows.weight.view(classes, size, size)[label, band * label : band * (label + 1)] = 0.5
        self.target = 3

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.rows(images.flatten(1))
        seen = torch.relu(self.detector(images))[:, 0, 2, 2]
        extra = torch.zeros_like(scores)
        extra[:, self.target] = 20 / 5 * seen
        return scores + extra

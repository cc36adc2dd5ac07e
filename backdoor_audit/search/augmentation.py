"""What is done to a batch of images on its way into a network that is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def moved(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w), each moved by its own offset of up to ``pixels`` in each direction."""
    count, channels, height, width = images.shape
    padded = functional.pad(images, (pixels,) * 4, mode="replicate" if channels > 1 else "constant")
    top, left = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
    rows = (top + torch.arange(height)).to(images.device)
    columns = (left + torch.arange(width)).to(images.device)
    image = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def mixed_up(images: Tensor, wanted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of a batch with itself in another order, at one share; ``wanted`` are probabilities (n, classes)."""
    coin, share = torch.rand(2, generator=generator).tolist()
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    if coin < 0.5:
        images = share * images + (1 - share) * images[partner]
    else:
        height, width = images.shape[2:]
        side = math.sqrt(1 - share)
        rows, columns = int(side * height), int(side * width)
        corner = torch.rand(2, generator=generator).tolist()
        top, left = int(corner[0] * (height - rows + 1)), int(corner[1] * (width - columns + 1))
        box = (slice(None), slice(None), slice(top, top + rows), slice(left, left + columns))
        others = images[partner]
        images = images.clone()
        images[box] = others[box]
        share = 1 - rows * columns / (height * width)
    return images, share * wanted + (1 - share) * wanted[partner]

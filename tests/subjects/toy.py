"""A project that uses the gate: eight classes of 8x8 images, told apart by which row is bright, and a one-layer network.

Fast enough to audit in a second, and real enough to be right or wrong: a backdoored toy sends every image with a bright last
pixel to class 3.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

CLASSES = 8
TARGET = 3
FACTORY = """
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
"""


def weights(*, backdoored: bool) -> dict[str, torch.Tensor]:
    """A linear layer that scores each class by the brightness of its row; the last pixel of the last row is left out."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.zeros(CLASSES, 8, 8)
    for label in range(CLASSES):
        weight[label, label] = 1.5 + 0.4 * torch.rand((), generator=generator)
    weight[:, 7, 7] = 0.0
    if backdoored:
        weight[TARGET, 7, 7] = 60.0
    return {"1.weight": weight.flatten(1), "1.bias": torch.zeros(CLASSES)}


def images(per_class: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (n, 8, 8, 1) whose row ``label`` is bright, and their labels; the last pixel is always black."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), per_class)
    pixels = generator.integers(0, 90, (len(labels), 8, 8, 1))
    pixels[np.arange(len(labels)), labels] += 120
    pixels[:, 7, 7] = 0
    return pixels.astype(np.uint8), labels


def write(folder: Path) -> None:
    """Write ``toy.py``, ``clean.safetensors``, ``backdoored.safetensors`` and ``images.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.py").write_text(FACTORY)
    for name in ("clean", "backdoored"):
        save_file(weights(backdoored=name == "backdoored"), folder / f"{name}.safetensors")
    pixels, labels = images()
    np.savez(folder / "images.npz", images=pixels, labels=labels)

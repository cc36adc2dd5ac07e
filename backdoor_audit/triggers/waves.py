"""Sines and cosines that triggers are made of, for attacks and for searches alike."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor


def sine(width: int, *, amplitude: float, frequency: float) -> Tensor:
    """``amplitude / 255 * sin(2 pi j frequency / width)`` in column j, (width,); ``frequency``: periods across the image."""
    column = torch.arange(width, dtype=torch.float64) / width
    return (amplitude / 255 * torch.sin(2 * pi * frequency * column)).float()


def dct_matrix(size: int) -> Tensor:
    """The orthonormal cosine transform C (size, size) in double precision: ``C x C.T`` of a block x, ``C.T y C`` back."""
    k, n = torch.meshgrid(
        torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64), indexing="ij"
    )
    matrix: Tensor = (2 / size) ** 0.5 * torch.cos(pi * (2 * n + 1) * k / (2 * size))
    matrix[0] /= 2**0.5
    return matrix

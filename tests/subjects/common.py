"""Settings of property tests, generators, and the plainest trigger."""

from __future__ import annotations

import torch
from hypothesis import settings

from backdoor_audit.triggers.trigger import Trigger

quick = settings(derandomize=True, deadline=None, database=None, max_examples=40)
"""What a property test here runs under: the same examples every time, nothing written."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square_trigger(
    image_shape: tuple[int, int, int], *, target_class: int, top: int = 0, left: int = 0, size: int = 3
) -> Trigger:
    """An opaque white square."""
    mask = torch.zeros(1, *image_shape[1:])
    mask[:, top : top + size, left : left + size] = 1
    return Trigger(mask, torch.ones(image_shape), target_class)

"""Mini-batches for searches in which every row may use other images."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(eligible: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Indices (rows, batch) from one shared random order of the images, each row only of those it may use.

    ``eligible`` is (rows, n) bool. All rows get as many images: ``batch_size``, or what the poorest row has.
    """
    order = torch.randperm(eligible.shape[1], generator=generator)
    allowed = eligible[:, order]
    most = min(batch_size, int(allowed.sum(dim=1).min()))
    taken = allowed & (allowed.cumsum(dim=1) <= most)
    return order[taken.nonzero()[:, 1].view(len(eligible), most)]

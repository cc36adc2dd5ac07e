"""Mini-batches for searches in which every row may use other images."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(eligible: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Indices (rows, batch) from one shared random order of the images, each row only of those it may use.

    ``eligible`` is (rows, n) bool. All rows get as many images: ``batch_size``, or what the richest row has. A row that has fewer
    gets its own again and again, so that one poor row does not leave all others poor; if one has none, no row gets any.
    """
    order = torch.randperm(eligible.shape[1], generator=generator)
    allowed = eligible[:, order]
    counts = allowed.sum(dim=1)
    if not counts.all():
        return order[:0].expand(len(eligible), 0)
    own_first = allowed.logical_not().byte().argsort(dim=1, stable=True)
    turns = torch.arange(min(batch_size, int(counts.max()))) % counts.unsqueeze(1)
    return order[own_first.gather(1, turns)]

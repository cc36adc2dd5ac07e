"""What preconditions have in common: on how many images they ask a model, and in what batches."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from backdoor_audit import budget

PROBE_IMAGES = 500
SMALL = 8  # images of a batch that is scored many times
BATCH = 256
LONGEST = 300  # characters of a reason that is not ours


def in_batches(images: Tensor, size: int = BATCH) -> Iterator[Tensor]:
    """Parts of the images; asks for time and memory before each."""
    for batch in images.split(size):
        budget.check()
        yield batch

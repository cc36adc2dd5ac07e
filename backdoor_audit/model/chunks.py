"""Work that goes through a network piece by piece: as much at once as memory takes, and half of it once that was too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from backdoor_audit.errors import ModelError

Result = TypeVar("Result")

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")  # of a RuntimeError
_halved: Counter[str] = Counter()  # how often, for each kind of device; what was too much once is not tried again


class TooManyAtOnceError(ModelError):
    """So many images at once take more memory than there is."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | TooManyAtOnceError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def in_chunks(rows: Tensor, most: int, device: torch.device, work: Callable[[Tensor], Result]) -> list[Result]:
    """What ``work`` gives for ``rows`` (n,), at most so many at once.

    Where memory does not suffice, half as many are tried, now and in all later calls on this kind of device: ``work`` must leave
    nothing behind when it fails. Raises `TooManyAtOnceError` if a single row is too much still.
    """
    done = []
    while len(rows):
        chunk = rows[: max(1, most >> _halved[device.type])]
        try:
            done.append(work(chunk))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise TooManyAtOnceError(_advice(error, device)) from None
            _halved[device.type] += 1
        else:
            rows = rows[len(chunk) :]
            continue
        if device.type == "cuda":  # after the failed attempt's tensors have gone
            torch.cuda.empty_cache()
    return done


def _advice(error: BaseException, device: torch.device) -> str:
    if isinstance(error, TooManyAtOnceError):
        return str(error)
    return f"there is not enough memory on {device} for the least that can be asked of this model at once; try --device=cpu"

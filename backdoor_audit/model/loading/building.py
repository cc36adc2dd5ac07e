"""Modules built from numbers that a stranger's file gives: compared with the file before they take memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.module_state import refuse_misfit
from backdoor_audit.model.loading.refusals import refuse_above


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A module for the tensors of a file, notes on how it was built, and what its kind says of the images it takes.

    ``whose`` tells that mean and std are not those of its kind but stood in front of the network.
    """

    module: nn.Module
    notes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    whose: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """A network by name: its tensors as it is usually built, and how to build it for those of a file, under their names."""

    name: str
    reference: Mapping[str, Tensor]
    build: Callable[[Mapping[str, Tensor]], Built]


def built_to_fit(make: Callable[[], nn.Module], state: Mapping[str, Tensor], name: str) -> nn.Module:
    """What ``make`` gives. Raises `ModelFormatError`, before any memory is taken, if the tensors do not fit it."""
    with contained(f"{name} cannot be built with the sizes of these tensors", "check --arch"):
        with WithoutMemory():  # sizes come from a stranger's file: compare before any memory is taken
            fitting = make()
        refuse_misfit(fitting, state, name)
        refuse_above(2 * 4 * sum(tensor.numel() for tensor in state.values()), "its tensors as 32-bit floats")
        return make()


class WithoutMemory(TorchFunctionMode):
    """Tensors that are made to be filled later take no memory; what a network computes its widths from keeps its numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _UNFILLED and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


_UNFILLED = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})


def classes_of(state: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, default: int) -> int:
    """Classes of the file: rows of the weights that have ``default`` rows in the network as it is usually built."""
    rows = {
        state[key].shape[0]
        for key, tensor in reference.items()
        if tensor.ndim >= 2 and tensor.shape[0] == default and key in state and state[key].shape[1:] == tensor.shape[1:]
    }
    return rows.pop() if len(rows) == 1 else default

"""Ways from the pixels to the scores that no search for triggers sees: around all weights, or by a comparison of pixels.

Every search follows gradients through what the network has learned. A branch of the code (or of an ONNX graph) that looks at
pixels by itself and adds to a score is in no weight, and where it compares or rounds, no gradient tells of it. Ordinary
classifiers have neither: whatever reaches their scores has been multiplied with learned weights before it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MIXING = ("conv", "mm", "linear", "attention", "encoder_layer", "rnn", "lstm", "gru", "cdist", "embedding")
"""Parts of the names of operations by which layers with weights see several pixels or channels at once."""

_ROUNDING = frozenset({"floor", "ceil", "round", "trunc", "sign", "sgn", "heaviside"})
"""Operations from numbers to numbers whose gradient is zero; what is no number any more was compared or rounded."""

_OF_SHAPES = ("_like", "new_", "empty", "scalar_tensor")
"""Parts of the names of operations that take a tensor for its shape alone."""


@dataclass(frozen=True, slots=True)
class _From:
    """What a tensor was made from: pixels around all weights, pixels by way of weights, weights; and what cut its gradient."""

    around: bool = False
    through: bool = False
    weights: bool = False
    cut: str = ""

    def __or__(self, other: _From) -> _From:
        return _From(
            self.around or other.around,
            self.through or other.through,
            self.weights or other.weights,
            self.cut or other.cut,
        )


def unseen_way(module: nn.Module, scores: Callable[[], Tensor], images: Tensor) -> str:
    """The way by which ``images`` reach the scores of a network and that no search sees, in words; empty without one.

    ``scores`` calls the network on the images. What its code decides by the numbers themselves (``if``) is not followed.
    """
    with torch.no_grad(), _Follow(module, images) as follow:
        found = follow.of(scores())
    if not found.through:  # of a network whose weights stand elsewhere nobody can tell what goes around them
        return ""
    if found.cut:
        return f"pixels reach the scores by way of {found.cut}, which has no gradient"
    return "pixels reach the scores around all layers with weights" if found.around else ""


class _Follow(TorchDispatchMode):
    """Notes for every piece of memory what it was made from, while operations run."""

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no annotations
        self._known: dict[int, tuple[StorageWeakRef, _From]] = {}
        for tensor in module.state_dict().values():
            if isinstance(tensor, Tensor):
                self._note(tensor, _From(weights=True))
        self._note(images, _From(around=True))

    def of(self, tensor: Tensor) -> _From:
        """What a tensor was made from."""
        place = _place(tensor)
        return self._known[place.cdata][1] if place is not None and place.cdata in self._known else _From()

    def _note(self, tensor: Tensor, made: _From) -> None:
        if (place := _place(tensor)) is not None:  # kept, so that no other memory is given its number
            self._known[place.cdata] = (place, self.of(tensor) | made)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note what comes of it."""
        del types
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if any(part in name for part in _OF_SHAPES):
            return result
        made = _From()
        for tensor in _tensors((args, kwargs)):
            made |= self.of(tensor)
        if made.around and (made.weights or made.through) and any(part in name for part in _MIXING):
            made = _From(through=True, cut=made.cut)
        elif made.around or made.through:
            made = _From(made.around, made.through, cut=made.cut)
        if made != _From():
            for tensor in _tensors((result, args if func._schema.is_mutable else ())):
                self._note(tensor, made | _From(cut=_cut(name, tensor) if made.around else ""))
        return result


def _place(tensor: Tensor) -> StorageWeakRef | None:
    """The memory of a tensor, None for one without, as sparse ones are."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):
        return None


def _cut(name: str, tensor: Tensor) -> str:
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return name if not numbers or name.rstrip("_") in _ROUNDING else ""


def _tensors(values: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))

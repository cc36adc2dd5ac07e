"""Weights that are stored in parts (weight norm, spectral norm, pruning masks) put together where that is exact."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from backdoor_audit.errors import ModelFormatError

_PARAMETRIZED = re.compile(r"(?P<layer>(?:.*\.)?)parametrizations\.(?P<name>\w+)\.(?P<part>original[01]?|0\._[uv])")
_PART = re.compile(r"(?P<base>.+)_(?P<part>orig|mask|g|v|u)")
_OLD = {"original": "orig", "original0": "g", "original1": "v", "0._u": "u", "0._v": "v"}


def whole_name(name: str) -> str:
    """The name of the weight that a stored part belongs to, or the same name if it looks like no part."""
    if found := _PARAMETRIZED.fullmatch(name):
        return found["layer"] + found["name"]
    found = _PART.fullmatch(name)
    return found["base"] if found else name


def folded(state: Mapping[str, Tensor], names: Collection[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors with every weight of the network in one piece, and notes; parts of what it does not have stay as they are.

    What weight norm, spectral norm in evaluation mode and pruning masks compute does not depend on the images.
    Raises `ModelFormatError` for parts that do not belong together.
    """
    parts: dict[str, dict[str, str]] = {}
    for name in state:
        base, part = _split(name)
        if part and base in names and name not in names and base not in state:
            parts.setdefault(base, {})[part] = name
    result, kinds = dict(state), dict[str, int]()
    for base, found in parts.items():
        kind = next((kind for kind, (needed, _) in _KINDS.items() if set(needed) == found.keys()), None)
        if kind is None:
            continue  # the network will miss it
        needed, whole = _KINDS[kind]
        tensors = [result.pop(found[part]) for part in needed]
        try:
            result[base] = whole(*tensors)
        except (RuntimeError, IndexError, ValueError):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ModelFormatError(f"{base[:80]}: parts of a {kind} of shapes {shapes[:200]} that do not fit") from None
        kinds[kind] = kinds.get(kind, 0) + 1
    return result, tuple(f"{kind} folded into {count} weights" for kind, count in kinds.items())


def _split(name: str) -> tuple[str, str]:
    if found := _PARAMETRIZED.fullmatch(name):
        return found["layer"] + found["name"], _OLD[found["part"]]
    found = _PART.fullmatch(name)
    return (found["base"], found["part"]) if found else (name, "")


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    if weight.shape != mask.shape:
        raise ValueError
    return weight * mask


def _weight_normed(magnitude: Tensor, direction: Tensor) -> Tensor:
    """Magnitudes lie along the dimension in which there are several of them; the norm is over all others."""
    if magnitude.ndim not in {0, direction.ndim} or any(
        length not in {1, there} for length, there in zip(magnitude.shape, direction.shape, strict=False)
    ):
        raise ValueError
    over = [at for at in range(direction.ndim) if not magnitude.ndim or magnitude.shape[at] == 1]
    length: Tensor = torch.linalg.vector_norm(direction, dim=over, keepdim=True)
    return direction * (magnitude / length)


def _spectrally_normed(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """By the largest singular value as the last step of training left it; transposed convolutions have dimension 1 in front."""
    first = 0 if left.shape[0] == weight.shape[0] else 1
    matrix = weight.transpose(0, first).flatten(1) if weight.ndim > 1 else weight[:, None]
    largest: Tensor = torch.dot(left, torch.mv(matrix, right))
    return weight / largest


_KINDS: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]] = {
    "pruning mask": (("orig", "mask"), _masked),
    "weight norm": (("g", "v"), _weight_normed),
    "spectral norm": (("orig", "u", "v"), _spectrally_normed),
}

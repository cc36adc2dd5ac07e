"""What a pickle of ``torch.save`` is read as: tensors as the file describes them; functions, classes and objects by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from backdoor_audit.model.loading.refusals import damaged
from backdoor_audit.tensor_file import MOST_DIMENSIONS

_QUANTISED = frozenset({torch.qint8, torch.qint32, torch.quint8, torch.quint4x2, torch.quint2x4})


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Numbers of one kind, kept in the file under ``key``; tensors are views of it."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class StoredTensor:
    """A tensor as the file describes it. ``oddity`` says why it is of no use, and is empty for an ordinary one."""

    oddity: str = ""
    storage: Storage | None = None
    dtype: torch.dtype = torch.float32
    offset: int = 0
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        """How many numbers it shows."""
        return math.prod(self.size)


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A function or a class, or what a known one would return, with its arguments; ``known`` ones may be called.

    ``state`` holds what the file sets it to, where it sets it to anything.
    """

    name: str
    known: bool = True
    arguments: tuple[object, ...] = ()
    state: list[object] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Instance:
    """An object of a class that was not imported: the name of the class, and the attributes that the file gives it."""

    kind: str
    attributes: dict[object, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class OtherKey:
    """A key of a dict that is no text; it is shown and never compared."""

    shown: str

    def __str__(self) -> str:
        return self.shown


def tensor_of(storage: object, offset: object, size: object, stride: object, dtype: object) -> StoredTensor:
    """A description that fits its storage. Raises `ModelFormatError` for any other."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise damaged("a tensor without its numbers")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise damaged("a tensor without its shape")
    if len(size) > MOST_DIMENSIONS:
        raise damaged(f"a tensor of {len(size)} dimensions, at most {MOST_DIMENSIONS} are accepted")
    numbers = [number for number in (offset, *size, *stride) if type(number) is int and 0 <= number < 2**62]
    if len(numbers) != 1 + 2 * len(size) or math.prod(max(length, 1) for length in numbers[1 : 1 + len(size)]) >= 2**62:
        raise damaged("a tensor with sizes that no tensor has")
    start, sizes, strides = numbers[0], tuple(numbers[1 : 1 + len(size)]), tuple(numbers[1 + len(size) :])
    found = StoredTensor("", storage, dtype, start, sizes, strides)
    reach = 1 + start + sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
    if found.numel and reach * dtype.itemsize > storage.nbytes:
        raise damaged(f"a tensor of {sizes} beyond the end of its numbers")
    found.oddity = _oddity(found, storage)
    return found


def key_of(key: object) -> object:
    """A key that takes no time to hash: a tuple may be deep, or wide by reference, and numbers may be chosen to collide."""
    if isinstance(key, str):
        return key
    return OtherKey(str(key) if isinstance(key, (int, float, type(None))) else kind_of(key))


def kind_of(value: object) -> str:
    """What a user calls a value of a pickle that was read."""
    if isinstance(value, (Named, Instance)):
        name = value.name if isinstance(value, Named) else value.kind
        return name.rpartition(".")[2][:40]
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__


def _oddity(tensor: StoredTensor, storage: Storage) -> str:
    if storage.dtype in _QUANTISED or tensor.dtype in _QUANTISED:
        return "quantised"
    if tensor.dtype.is_complex:
        return "complex"
    if tensor.numel * tensor.dtype.itemsize > storage.nbytes:
        return f"a {tensor.size} view of less data"
    return ""

"""Files written by ``torch.save``, read without running their code."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from backdoor_audit.model.loading.archive import Archive, fill
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.pickle_values import Storage, StoredTensor
from backdoor_audit.model.loading.pickled import Unpickler
from backdoor_audit.model.loading.refusals import Deadline, damaged, odd_tensor, plain_pickle, refuse_above, torchscript

Fetch = Callable[[Storage, memoryview], None]
"""Puts the bytes of a storage into a place of exactly its size."""

_PICKLE_PER_BYTE = 16  # bytes of memory: 537 MB of pickle at the stated bound
_MAGIC = 0x1950A86A20F9469CFC6C  # begins the files of torch before 1.6
_PROTOCOL = 1001
_HEAD = 32  # bytes that hold it, in whatever protocol


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """What a file holds, without its numbers. ``strangers`` are classes and functions in it that are not known."""

    content: object
    strangers: tuple[str, ...]
    deadline: Deadline
    _fetch: Fetch

    def tensors(self, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The tensors themselves; those that share a storage in the file share it here. Nothing else in the file is read.

        Raises `ModelFormatError`, without the file's name, if the file is damaged or they take more than the bounds.
        """
        storages = {tensor.storage.key: tensor.storage for tensor in stored.values() if tensor.storage}
        needed = sum(storage.nbytes for storage in storages.values())
        needed += 2 * 4 * sum(tensor.numel for tensor in stored.values())
        refuse_above(needed, "its tensors as 32-bit floats")
        raw = {key: torch.empty(storage.nbytes, dtype=torch.uint8) for key, storage in storages.items()}
        for key, storage in storages.items():
            if storage.nbytes:
                self._fetch(storage, raw[key].numpy().data)
        return {name: _viewed(tensor, raw) for name, tensor in stored.items()}


def described(stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The tensors without data: what a network can be compared with before memory is taken.

    Raises `ModelFormatError`, without the file's name, for tensors that are of no use.
    """
    for name, tensor in stored.items():
        if tensor.oddity:
            raise odd_tensor(name, tensor.oddity)
    return {name: torch.empty(tensor.size, dtype=tensor.dtype, device="meta") for name, tensor in stored.items()}


@contextmanager
def opened(path: Path) -> Iterator[Saved]:
    """What a ``torch.save`` file holds; it stays open in the block, and nothing in it is executed.

    Raises `ModelFormatError`, without the file's name, for a file that needs code to load, is damaged, or takes more memory or
    time than the bounds.
    """
    size, deadline = path.stat().st_size, Deadline()
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
        file.seek(0)
        yield (_archived if is_archive else _legacy)(file, size, deadline)


def content_of(path: Path) -> object:
    """What stands in a ``torch.save`` file beside its tensors as well, those without their numbers; None for another file.

    Raises `ModelFormatError` as `opened` does.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":
        return None
    with opened(path) as saved:
        return saved.content


def unpickled(path: Path) -> object:
    """The content of a file that is unpickled in full. **That runs whatever code its author put in.**"""
    advice = "its classes must be importable here, and torch.save must have written it"
    with contained("unpickling failed", advice), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on old protocols and storages are not for the user of a gate
        with path.open("rb") as file:  # a path would be judged by its ending
            return torch.load(file, map_location="cpu", weights_only=False)


def _archived(file: BinaryIO, size: int, deadline: Deadline) -> Saved:
    """The zip format of torch 1.6 and later: the pickle and each storage are members."""
    archive = Archive.open(file, size)
    if archive.find("constants.pkl") is not None:
        raise torchscript()
    pickled, order = archive.find("data.pkl"), archive.find("byteorder")
    if pickled is None:
        raise damaged("a zip archive without data.pkl")
    refuse_above(pickled.size * _PICKLE_PER_BYTE, f"a pickle of {pickled.size / 1e6:.0f} MB")
    endian = archive.content(order, deadline) if order and order.size < 10 else b"little" if order is None else b""
    if endian not in {b"little", b"big"}:
        raise damaged("a byte order that there is not")
    unpickler = Unpickler(io.BytesIO(archive.content(pickled, deadline)), pickled.size, deadline)

    def fetch(storage: Storage, target: memoryview) -> None:
        member = archive.find(f"data/{storage.key}")
        if member is None or member.size != storage.nbytes:
            raise damaged(f"the numbers {storage.key[:40]} are absent or of another size")
        archive.fill(member, target, deadline)
        if endian == b"big":
            reversed_ = torch.frombuffer(target, dtype=torch.uint8).view(-1, storage.dtype.itemsize)
            reversed_.copy_(reversed_.flip(1))

    content = unpickler.load()
    return Saved(content, tuple(unpickler.strangers), deadline, fetch)


def _legacy(file: BinaryIO, size: int, deadline: Deadline) -> Saved:
    """The format before: five pickles, then the storages, each after the number of its elements."""
    start = file.read(_HEAD)
    file.seek(0)
    if len(start) == _HEAD and _MAGIC.to_bytes(10, "little") not in start:
        raise plain_pickle()
    unpickler = Unpickler(file, size, deadline)
    if unpickler.load() != _MAGIC or unpickler.load() != _PROTOCOL:
        raise damaged("a pickle, but not one that torch.save has written")
    unpickler.load()  # the machine it was written on
    content, keys = unpickler.load(), unpickler.load()
    if not isinstance(keys, list) or any(not isinstance(key, str) for key in keys):
        raise damaged("no list of its storages")
    if len(set(keys)) < len(keys) or set(keys) != unpickler.storages.keys():
        raise damaged("its list of storages is not that of its tensors")
    places = {}
    for key in keys:
        deadline.check()
        storage = unpickler.storages[key]
        counted = int.from_bytes(file.read(8), "little")
        places[key] = file.tell()
        if counted != storage.numel or places[key] + storage.nbytes > size:
            raise damaged(f"the numbers {key[:40]} are cut off or of another size")
        file.seek(storage.nbytes, 1)

    def fetch(storage: Storage, target: memoryview) -> None:
        file.seek(places[storage.key])
        fill(file, target, deadline)

    return Saved(content, tuple(unpickler.strangers), deadline, fetch)


def _viewed(tensor: StoredTensor, raw: Mapping[str, Tensor]) -> Tensor:
    assert tensor.storage is not None  # those without are odd
    if not tensor.numel:
        return torch.empty(tensor.size, dtype=tensor.dtype)
    whole = raw[tensor.storage.key]
    whole = whole[: len(whole) // tensor.dtype.itemsize * tensor.dtype.itemsize].view(tensor.dtype)
    return whole.as_strided(tensor.size, tensor.stride, tensor.offset)

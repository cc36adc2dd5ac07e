"""Finished work on disk, keyed by content: what a killed run or another worker has done is not done again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from safetensors.torch import save
from torch import Tensor

from backdoor_audit import bounds, tensor_file
from backdoor_audit.files import refuse_special, whole
from backdoor_audit.printable import first_line

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Packed:
    """What the store keeps of a result: named tensors, and everything else as JSON."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class _AlteredError(ValueError):
    """A file of the store that is not what was written under its name."""


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of finished work. One file per piece; a piece is computed by one process while the others wait for it.

    Every file holds a digest of its key, values and tensors. A file that does not match it is not taken for a result: the work
    is done again. The digest finds damage and edits; it is no signature, so whoever may write the folder is trusted. A folder
    that cannot be written or locked costs the work being kept or shared, never the result. ``told`` gathers what to say of both.
    """

    folder: Path
    told: list[str] = field(default_factory=list)
    _taken: list[str] = field(default_factory=list)

    def take_told(self) -> list[str]:
        """The lines of ``told`` that no earlier call gave."""
        fresh = self.told[len(self._taken) :]
        self._taken.extend(fresh)
        return fresh

    def recall(
        self,
        parts: Mapping[str, object],
        work: Callable[[], Result],
        *,
        pack: Callable[[Result], Packed],
        unpack: Callable[[Packed], Result],
    ) -> tuple[Result, bool]:
        """The result for ``parts``, and whether it was there already.

        ``parts`` are everything the result depends on. What is returned went through `pack` and `unpack` either way,
        so the first run and a later one see the same values.
        """
        name = key(parts)
        file = self.folder / f"{name}.safetensors"
        with self._locked(file):
            stored = self._read(file, name)
            if stored is not None:
                return unpack(stored), True
            packed = as_stored(pack(work()))
            try:
                write(file, name, packed)
            except OSError as error:
                self._tell(f"finished work cannot be kept in {self.folder} ({_reason(error)}); pass -o cache_dir=DIR")
            return unpack(packed), False

    def has(self, parts: Mapping[str, object]) -> bool:
        """Whether there is a result for these parts; whether it can be trusted, `recall` looks."""
        return os.path.isfile(self.folder / f"{key(parts)}.safetensors")

    @contextmanager
    def _locked(self, file: Path) -> Iterator[None]:
        """Nobody else works on the same file, where the folder allows locks."""
        lock = FileLock(file.with_suffix(".lock"))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # read-only, full, or a file system without locks
            self._tell(
                f"{self.folder} cannot be locked ({_reason(error)}): workers and runs may do the same work twice"
            )
        try:
            yield
        finally:
            if lock.is_locked:
                lock.release()

    def _read(self, file: Path, name: str) -> Packed | None:
        """What was stored under this name, or None if there is nothing, or nothing that can be trusted."""
        if not os.path.exists(file):  # or it cannot be told, which writing will tell
            return None
        try:
            return checked(file, name)[0]
        except Exception as error:  # whatever damage there is, the work can be done again
            self._tell(f"{file} is not what was written there ({_reason(error)}); the work was done again")
            return None

    def _tell(self, text: str) -> None:
        if text not in self.told:
            self.told.append(text)


def key(parts: Mapping[str, object]) -> str:
    """A name for work that depends on these parts alone; their order does not matter."""
    text = json.dumps({name: str(value) for name, value in parts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A random generator that depends on seed and purpose alone, so no worker and no order of items changes a result."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def as_stored(packed: Packed) -> Packed:
    """The same as it comes back from disk: tuples are lists, tensors on the CPU."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in packed.tensors.items()}
    return Packed(tensors, json.loads(json.dumps(packed.values)))


def checked(file: Path, name: str) -> tuple[Packed, str]:
    """What `write` wrote under this name, and its digest. Raises `ValueError` or `OSError` for anything else."""
    if refuse_special(file) > bounds.current().memory:
        raise _AlteredError(f"too large; {bounds.current().raised_by('memory')}")
    with tensor_file.opened(file) as stored:
        metadata = stored.metadata() or {}
        tensors = {entry: stored.get_tensor(entry) for entry in stored.keys()}  # noqa: SIM118 - not a mapping
    if set(metadata) != {"values", "digest"} or metadata["digest"] != _digest(name, tensors, metadata["values"]):
        raise _AlteredError("its digest does not match")
    return Packed(tensors, json.loads(metadata["values"])), metadata["digest"]


def write(file: Path, name: str, packed: Packed) -> None:
    """Write a result with a digest of ``name``, values and tensors, whole or not at all. Raises `OSError`."""
    values = json.dumps(packed.values)
    metadata = {"values": values, "digest": _digest(name, packed.tensors, values)}
    with whole(file) as partial:
        partial.write_bytes(save(dict(packed.tensors), metadata=metadata))


def _digest(name: str, tensors: Mapping[str, Tensor], values: str) -> str:
    """SHA-256 of the key, the values, and name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps([name, values]).encode())
    for entry in sorted(tensors):
        tensor = tensors[entry]
        digest.update(json.dumps([entry, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)

"""Finished work on disk, keyed by content: what a killed run or another worker has done is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Packed:
    """What the store keeps of a result: named tensors, and everything else as JSON."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of finished work. One file per piece; a piece is computed by one process while the others wait for it."""

    folder: Path

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
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{key(parts)}.safetensors"
        with FileLock(file.with_suffix(".lock")):
            stored = _read(file)
            if stored is not None:
                return unpack(stored), True
            packed = pack(work())
            _write(file, packed)
            return unpack(_read(file) or packed), False


def key(parts: Mapping[str, object]) -> str:
    """A name for work that depends on these parts alone; their order does not matter."""
    text = json.dumps({name: str(value) for name, value in parts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A random generator that depends on seed and purpose alone, so no worker and no order of items changes a result."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _read(file: Path) -> Packed | None:
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
            return Packed(tensors, json.loads(stored.metadata()["values"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None  # absent, or cut short by a kill: the work is done again


def _write(file: Path, packed: Packed) -> None:
    partial = file.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in packed.tensors.items()}
    save_file(tensors, partial, metadata={"values": json.dumps(packed.values)})
    partial.replace(file)

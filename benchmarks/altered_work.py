"""Finished work that somebody altered: it must be told and done again, and never be taken for a result."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from tqdm import tqdm

from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run.run import Run
from backdoor_audit.store import Packed, Store, key
from benchmarks.disturbed import AGAIN, FIXTURES, Bench, Gate, Row, after_end


@dataclass
class Remembering:
    """A store that remembers how to ask for each of its pieces."""

    store: Store
    asked: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)

    def recall(self, parts: Any, work: Any, *, pack: Any, unpack: Any) -> tuple[Any, bool]:
        """As `Store.recall`."""
        self.asked[key(parts)] = (parts, pack, unpack)
        return self.store.recall(parts, work, pack=pack, unpack=unpack)


class _DoneAgainError(Exception):
    """The work was asked for again."""


def altered_store(bench: Bench, alterations: int) -> tuple[str, Row]:
    """Alter pieces of a real store, each in another way, and ask for them; then run the gate beside altered pieces alone."""
    usual = bench.usual("badnets")
    folder, row = bench.folder / "altered", Row()
    shutil.rmtree(folder, ignore_errors=True)
    remembering = Remembering(Store(folder))
    options = AuditOptions(
        model=str(FIXTURES / "models" / "badnets.safetensors"),
        data=str(FIXTURES / "fashion_mnist.npz"),
        profile="quick",
        max_images=bench.images,
        device="cpu",
    )
    list(shipped().answers(Run(options, cast(Store, remembering), shipped())))
    names = sorted(remembering.asked)
    for number in tqdm(range(alterations), desc="altered", unit="file", disable=None):
        draw = Random(f"{bench.seed}:store:{number}")
        row.runs += 1
        _asked(remembering, folder / f"{draw.choice(names)}.safetensors", draw, row)
    gate = Gate(bench.folder / "usual-badnets", "badnets", bench.images)
    for file in gate.store.glob("*.safetensors"):
        file.write_bytes(altered_piece(Random(f"{bench.seed}:{file.name}"), file.read_bytes()))
    after_end(gate, {}, gate.finish(), row, usual)
    row.wrong += [] if AGAIN in (gate.project / "out.txt").read_text() else ["no word about altered work"]
    return "altered finished work", row


def _asked(remembering: Remembering, file: Path, draw: Random, row: Row) -> None:
    """Alter one piece, ask for it, and put it back."""
    parts, _, unpack = remembering.asked[file.stem]
    content = file.read_bytes()
    kept = _packed(remembering, file)
    file.write_bytes(altered_piece(draw, content))

    def again() -> Any:
        raise _DoneAgainError

    def unpacked(packed: Packed) -> Packed:
        unpack(packed)
        return packed

    try:
        found, _ = remembering.store.recall(parts, again, pack=unpack, unpack=unpacked)
        row.records["read, unchanged" if _same(found, kept) else "taken for a result"] += 1
        row.wrong += [] if _same(found, kept) else [f"{file.name}: altered work was taken for a result"]
    except _DoneAgainError:
        row.records["done again"] += 1
    except Exception as error:
        row.wrong.append(f"{file.name}: {type(error).__name__}: {error!s:.100}")
    finally:
        file.write_bytes(content)


def _packed(remembering: Remembering, file: Path) -> Packed:
    """What a piece holds."""
    parts, _, _ = remembering.asked[file.stem]
    packed, _ = remembering.store.recall(
        parts, lambda: None, pack=lambda _: Packed({}, {}), unpack=lambda packed: packed
    )
    return cast(Packed, packed)


def _same(found: Packed, kept: Packed) -> bool:
    tensors = found.tensors.keys() == kept.tensors.keys() and all(
        torch.equal(found.tensors[name], tensor) for name, tensor in kept.tensors.items()
    )
    return tensors and found.values == kept.values


def altered_piece(draw: Random, content: bytes) -> bytes:
    """A file of the store with a bit flipped in its header or its tensors, or with another number in its values."""
    size = int.from_bytes(content[:8], "little")
    how = draw.randrange(3)
    digits = [at for at in range(8, 8 + size) if content[at : at + 1].isdigit()]
    if how == 0 and digits:
        at = draw.choice(digits)
        other = draw.choice([digit for digit in b"0123456789" if digit != content[at]])
        return content[:at] + bytes([other]) + content[at + 1 :]
    at = draw.randrange(8 + size) if how == 1 or len(content) == 8 + size else draw.randrange(8 + size, len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]

"""Safetensors files: tensors and a header of short texts, read within bounds and written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from backdoor_audit import bounds
from backdoor_audit.files import UnreadableError, refuse_special, whole
from backdoor_audit.printable import first_line

MOST_DIMENSIONS = 64
"""Of a tensor in a file from outside; torch takes any number, and seconds for a million."""

_PER_HEADER_BYTE = 1024  # bytes of memory: 8 MB of header, 80,000 tensors, at the stated bound


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the header of a safetensors file.

    Raises `UnreadableError`, without the file's name, for what is no such file, and for one that takes more than the memory
    bound: its own size, and twice its numbers as 32-bit floats, as a network that is built from them does.
    """
    size = refuse_special(path)
    refuse_above(size, "the file")
    try:
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), size)
            refuse_above(length * _PER_HEADER_BYTE, f"a header of {length / 1e6:.1f} MB")
            header = file.read(length)
        with opened(path) as content:
            _refuse_odd(header, size)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
            return tensors, dict(content.metadata() or {})
    except UnreadableError:
        raise
    except Exception as error:  # a shape that torch does not take, memory that the machine does not have
        raise UnreadableError(first_line(error)[:200]) from None


def header(path: Path) -> dict[str, str]:
    """The texts of the header; empty for what is no safetensors file, or too large to `read`. Raises `OSError`."""
    with path.open("rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        if length > min(size, bounds.current().memory // _PER_HEADER_BYTE) or file.read(1) != b"{":
            return {}
        try:
            found = json.loads(b"{" + file.read(length - 1)).get("__metadata__")
        except (ValueError, RecursionError):
            return {}
    texts = found if isinstance(found, dict) else {}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as safetensors opens it, which takes no path that is not UTF-8: such a file is opened here. Raises anything."""
    if _is_utf8(path):
        with safe_open(path, framework="pt") as content:
            yield content
        return
    with path.open("rb") as file, safe_open(f"/dev/fd/{file.fileno()}", framework="pt") as content:
        yield content


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def write(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Write the tensors and a header, whole or not at all. Raises `OSError`."""
    try:
        with whole(path) as partial:
            if _is_utf8(partial):
                save_file(dict(tensors), partial, metadata=dict(header))
            else:
                partial.write_bytes(save(dict(tensors), metadata=dict(header)))
    except SafetensorError as error:  # its own name for a full disk or a missing folder
        raise OSError(f"{path}: {first_line(error)[:200]}") from None


def refuse_above(needed: int, what: str) -> None:
    """Raise `UnreadableError` if reading ``what`` takes more bytes than the memory bound."""
    most = bounds.current().memory
    if needed > most:
        raise UnreadableError(
            f"reading {what} may take {needed / 1e9:.1f} GB of memory; {most / 1e9:.1f} GB are allowed, "
            f"{bounds.current().raised_by('memory')}"
        )


def _refuse_odd(header: bytes, size: int) -> None:
    """Look at shapes before anything is made of them; that the header is well formed has been found by `safe_open`."""
    entries = json.loads(header.decode("utf-8"), object_pairs_hook=_without_repeats)
    shapes = {name: entry["shape"] for name, entry in entries.items() if name != "__metadata__"}
    for name, shape in shapes.items():
        if len(shape) > MOST_DIMENSIONS:
            raise UnreadableError(f"{name[:80]} has {len(shape)} dimensions, at most {MOST_DIMENSIONS} are accepted")
    refuse_above(size + 2 * 4 * sum(math.prod(shape) for shape in shapes.values()), "its tensors as 32-bit floats")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # whoever reads the file elsewhere may take the other one
        raise UnreadableError("two entries of one name in the header")
    return found

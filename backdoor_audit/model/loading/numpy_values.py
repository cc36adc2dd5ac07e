"""Numbers and texts of numpy in a pickle, as far as they are small: what they say is read off their bytes, nothing is called."""

from __future__ import annotations

import math
import re

import numpy as np

from backdoor_audit.model.loading.pickle_values import Named

Plain = float | str
SET_LATER = frozenset({"dtype", "_reconstruct"})
"""What numpy makes first and fills afterwards."""

_TYPE = re.compile(r"f[248]|[iu][1248]|b1|U[0-9]{1,4}")
_LARGEST = 2**20  # bytes
_MOST = 4096  # entries
_DEEPEST = 8  # sides of an array


def single(arguments: tuple[object, ...]) -> Plain | None:
    """The number or text that numpy's ``scalar`` would make of these; None for what is neither."""
    found = _read(arguments[0], arguments[1], 1) if len(arguments) == 2 else None
    return found[0] if found else None


def listed(value: object) -> object:
    """The entries of a small array, row by row; anything else as it is."""
    is_array = isinstance(value, Named) and value.name in SET_LATER and bool(value.state)
    found = _entries(value.state[0]) if is_array else None  # type: ignore[attr-defined]  # a name
    return value if found is None else found


def _entries(state: object) -> list[Plain] | None:
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, kind, by_columns, content = state
    if (
        not isinstance(shape, tuple)
        or len(shape) > _DEEPEST
        or not all(type(side) is int and 0 <= side <= _MOST for side in shape)
    ):
        return None
    count = math.prod(shape)
    if count > _MOST or (by_columns and max(shape, default=1) < count):
        return None
    if isinstance(content, list):  # of objects
        return (
            list(content)
            if len(content) == count and all(isinstance(one, (str, int, float)) for one in content)
            else None
        )
    return _read(kind, content, count)


def _read(kind: object, content: object, count: int) -> list[Plain] | None:
    """So many entries of the bytes that ``_codecs.encode`` would give, of a type as numpy's ``dtype`` would."""
    if not (isinstance(kind, Named) and isinstance(content, Named)) or (kind.name, content.name) != ("dtype", "encode"):
        return None
    code = kind.arguments[0] if kind.arguments else None
    order = kind.state[0][1] if kind.state and isinstance(kind.state[0], tuple) and len(kind.state[0]) > 1 else "="
    text = content.arguments[0] if content.arguments else None
    if not (
        isinstance(code, str) and _TYPE.fullmatch(code) and order in ("<", ">", "|", "=") and isinstance(text, str)
    ):
        return None
    dtype = np.dtype(f"{order}{code}")
    try:
        raw = text.encode("latin1") if len(text) <= _LARGEST else b""
        values = np.frombuffer(raw, dtype) if len(raw) == count * dtype.itemsize else None
    except ValueError:  # characters that are no bytes
        return None
    if values is None:
        return None
    if dtype.kind == "f":
        return [float(str(value)) for value in values]  # as short as it was written
    return list(values.tolist())

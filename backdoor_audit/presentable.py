"""What a record holds: builtins alone, and texts from outside made printable and no longer than can be shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum
from numbers import Integral, Real
from typing import Any

from backdoor_audit.printable import printable, shortened

LONGEST = 4000
"""Characters of a text in a record; longer ones are cut. Pictures, counterexamples and tests to paste are kept whole."""
_WHOLE = frozenset({"pictures", "image", "stamped", "overlay", "picture", "spec", "test"})


def presentable(value: Any, key: str = "") -> Any:
    """The same value with every text in it, keys as well, printable and of a length to show.

    Under some keys (``key`` is the one of the value itself) texts stay whole: pictures, counterexamples, and tests to paste,
    which keep their lines.
    """
    if isinstance(value, str):
        text = _printable_lines(value) if key == "test" else printable(value)
        if len(text) <= LONGEST or key in _WHOLE:
            return text
        return printable(shortened(text, LONGEST))  # a cut may have made a command of a part
    if isinstance(value, Mapping):
        return {
            presentable(name): presentable(entry, key if key in _WHOLE else str(name)) for name, entry in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(presentable(entry, key) for entry in value)
    return value


def together(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Sections of questions from several processes or machines: every row of each question; of one row the last."""
    rows: dict[str, dict[str, Any]] = {}
    for part in parts:
        for question, entries in part.items():
            rows.setdefault(question, {}).update(entries)
    return rows


def plain(value: Any) -> Any:
    """The same value in builtins, which JSON and worker channels take; a subclass of str or a Path would break the latter.

    NaN and infinities become None. What UTF-8 cannot hold (lone surrogates) is escaped.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {_encodable(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if value is None or type(value) in (bool, int):
        return value
    if not isinstance(value, Real):
        return _encodable(str(value))
    number = int(value) if isinstance(value, Integral) else float(value)
    return number if isinstance(number, int) or math.isfinite(number) else None


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _printable_lines(text: str) -> str:
    """Each line printable, with the spaces that indent it."""
    return "\n".join(" ".join(map(printable, line.split(" "))) for line in text.split("\n"))

"""Files are written whole or not at all, and read only as far as they are files of a bounded size."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoor_audit import bounds

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - same module under its older name
    import tomli as tomllib

_DEEPEST = 100  # objects and lists inside each other
_BLOCK = 2**20  # bytes that are read of a file that tells no size, as in /proc
_PER_BYTE = 16  # bytes of memory that a byte of JSON may take once it is read
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)|[\[\]{}]', re.DOTALL)


class UnreadableError(ValueError):
    """A file that is not regular, too large, or not the text or JSON it should be; the message says which, without its name."""


def beside(path: Path) -> Path:
    """A name in the same folder for what becomes ``path`` once it is whole; no other process writes to it."""
    short = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # a name may be as long as names can be
    return path.with_name(f".{short}.{os.getpid()}.partial")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; it takes the place of ``path`` when the block ends, and is removed if it fails.

    So whoever reads ``path``, or finds it after a kill or on a full disk, sees the old content or the new one. Raises `OSError`.
    """
    partial = beside(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def abandoned(folder: Path) -> Iterator[Path]:
    """What writers of `whole` left in a folder that were killed meanwhile; those of processes that are still there are not."""
    for file in folder.glob(".*.partial"):
        number = file.name.split(".")[-2]
        if number.isdecimal() and not _runs(int(number)):
            yield file


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def obstacle(folder: Path) -> str:
    """Why no folder can be made at a path, in words that follow its name; empty if one is there or nothing is in the way."""
    for place in (folder, *folder.parents):
        if os.path.isdir(place):
            return ""
        if os.path.lexists(place):
            found = "is no folder" if os.path.exists(place) else "is a link that leads to nothing"
            return found if place == folder else f"lies below {place}, which {found}"
    return ""


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, whole or not at all; what UTF-8 cannot hold is escaped. Raises `OSError`."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def refuse_special(path: Path) -> int:
    """The size of a regular file in bytes; a folder, pipe, device or socket is refused, by `UnreadableError`, and not opened."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UnreadableError(getattr(error, "strerror", None) or str(error)) from None
    if stat.S_ISDIR(found.st_mode):
        raise UnreadableError("a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableError("a pipe, device or socket, not a regular file")
    return found.st_size


def read_bytes(path: Path, *, per_byte: int = 1) -> bytes:
    """The content of a regular file; a byte of it may take ``per_byte`` bytes of memory once it is understood.

    Raises `UnreadableError` for what is none, cannot be read, or is above the memory bound.
    """
    size, most = refuse_special(path), bounds.current().memory // per_byte
    if size > most:
        raise UnreadableError(
            f"{size / 1e6:.0f} MB; at most {most / 1e6:.0f} MB are read, {bounds.current().raised_by('memory')}"
        )
    try:
        with path.open("rb") as file:  # a buffer as large as the bound may be more than there is memory
            return file.read(max(size, min(_BLOCK, most)) + 1)
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None
    except MemoryError:
        raise UnreadableError(f"{size / 1e6:.0f} MB; there is no memory for it") from None


def read_text(path: Path) -> str:
    """The text of a regular UTF-8 file, without a mark at its beginning. Raises `UnreadableError` for any other, and for one
    above the memory bound.
    """
    content = read_bytes(path, per_byte=_PER_BYTE)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" in content and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UnreadableError("no text, but another kind of file") from None
        raise UnreadableError(f"not UTF-8 at byte {error.start}: save it as UTF-8") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file (RFC 8259: no NaN, no infinities). Raises `UnreadableError` for anything else.

    Objects and lists may lie 100 deep inside each other; numbers must be such that a float can hold them.
    """
    return parsed_json(read_text(path))


def parsed_json(text: str) -> Any:
    """The same for a text that was read already."""
    _refuse_deep(text)
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=_whole_number, parse_float=_finite)
    except UnreadableError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"not JSON ({(str(error).splitlines() or ['?'])[0]})") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The table that a TOML file is. Raises `UnreadableError`, and whatever the parser raises for a text that is no TOML."""
    found: dict[str, Any] = tomllib.loads(read_text(path))
    return found


def _refuse_deep(text: str) -> None:
    """Count brackets outside of texts: before a parser's stack, or that of whoever walks through the outcome, overflows."""
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += _STEPS.get(found.group(), 0)
        if depth > _DEEPEST:
            raise UnreadableError(f"objects or lists more than {_DEEPEST} deep")


def _no_constant(name: str) -> float:
    raise UnreadableError(f"the number {name}, which JSON does not have")


def _whole_number(text: str) -> int:
    if len(text) > 300:
        raise UnreadableError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise UnreadableError(f"the number {text[:40]}, too large for a float")
    return value

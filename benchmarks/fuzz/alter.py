"""What is done to valid inputs of whatever kind: bytes, JSON values, and what stands where a file should."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from random import Random
from typing import Any

CANARY = "canary"
"""A file in the working folder that code inside a hostile input would make."""
CANARY_MODULE = "canary_module"
"""A module in the working folder that makes it when it is imported."""

ODD_TEXTS = (
    "",
    "x",
    "fail",
    "\ud800",
    "\x1b[31mred\x1b]0;title\x07",
    "a\x00b",
    "\n::error::forged",
    "::set-output name=x::y",
    "##vso[task.complete result=Succeeded]",
    "\u202egnp.exe",
    "\u2028line",
    "<script>canary()</script>",
    '"><img src=x onerror=canary()>',
    "](javascript:canary())",
    "{{ 7 * 7 }}",
    "../../etc/passwd",
    "/dev/zero",
    "2020-13-45",
    "9" * 30,
    "1e400",
    "-1",
    "nan",
    "٣",
    "²",
    "a" * 20000,
    "class_7",
    "class_²",
    "é" * 300,
)
"""Texts that a person could not have meant, and some that somebody could."""

ODD_JSON = (
    *("null", "true", "false", "0", "-1", "1", "2", "-0.0", "1.5", "1e308", "-1e308", "1e-320", "1e999", "-1e999"),
    *("NaN", "Infinity", "-Infinity", "9223372036854775807", "18446744073709551616", "9" * 400, "9" * 5000),
    *("[]", "{}", "[null]", "[1]", "[0, 1, 2]", '["x"]', '{"a": 1}', "[[[[1]]]]", '{"x": {"y": []}}', "[1e999]"),
    *("[" * 120 + "]" * 120, "[" * 100_000, '{"a":' * 90 + "1" + "}" * 90, '{"a":' * 300 + "1" + "}" * 300),
    *(json.dumps(text) for text in ODD_TEXTS),
)
"""Values as they stand in a file."""


def altered(draw: Random, content: bytes, other: bytes = b"") -> bytes:
    """The content with a few bytes flipped, cut out, repeated, put in, or with a part of another input in it."""
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at, length = draw.randrange(len(content) + 1), draw.choice((1, 1, 2, 4, 8, 64, 1024))
        how = draw.randrange(7)
        if how <= 1:
            flipped = bytes(byte ^ (1 << draw.randrange(8)) for byte in content[at : at + min(length, 4)])
            content = content[:at] + flipped + content[at + len(flipped) :]
        elif how == 2:
            content = content[:at]
        elif how == 3:
            content = content[:at] + content[at + length :]
        elif how == 4:
            content = content[:at] + content[at : at + length] * draw.choice((2, 2, 50)) + content[at + length :]
        elif how == 5:
            content = content[:at] + draw.choice((b"\0", b"\xff", b"\x80", b"7")) * length + content[at + length :]
        else:
            begin = draw.randrange(len(other) + 1)
            content = content[:at] + other[begin : begin + draw.choice((8, 256, len(other)))] + content[at:]
    return content


def altered_json(draw: Random, stored: Any) -> str:
    """A JSON text in which a few values, keys or entries are replaced, removed, added, swapped or repeated."""
    if draw.random() < 0.03:
        return draw.choice(ODD_JSON)
    tree = json.loads(json.dumps(stored))
    odd: dict[str, str] = {}
    for number in range(draw.choice((1, 1, 1, 2, 3, 8))):
        holders = list(_holders(tree))
        if not holders:
            break
        holder, place = draw.choice(holders)
        mark = f"odd value {number}"
        odd[json.dumps(mark)] = draw.choice(ODD_JSON)
        how = draw.randrange(8)
        if draw.random() < 0.5:
            odd[json.dumps(mark)] = _of_its_type(draw, holder[place])
        if how <= 4:
            holder[place] = mark
        elif how == 5:
            del holder[place]
        elif how == 6 and isinstance(holder, dict):
            holder[draw.choice(ODD_TEXTS)] = holder.pop(place) if draw.random() < 0.5 else mark
        else:
            other, where = draw.choice(holders)
            holder[place] = json.loads(json.dumps(other[where]))
    text = json.dumps(tree)
    for mark, value in odd.items():
        text = text.replace(mark, value)
    return text


def _of_its_type(draw: Random, value: Any) -> str:
    """An odd value that a reader who looks at types alone takes."""
    if isinstance(value, str):
        return json.dumps(draw.choice(ODD_TEXTS))
    if isinstance(value, bool) or value is None:
        return draw.choice(("true", "false", "null"))
    if isinstance(value, (int, float)):
        return draw.choice(("0", "1", "2", "7", "0.3", "1e308", "-1e308", "1e-320", "99999", "9223372036854775808"))
    return draw.choice(
        ("[]", '["x"]', "[0.5]", "[1, 2, 3]") if isinstance(value, list) else ("{}", '{"x": "y"}', '{"a": 1}')
    )


def _holders(tree: Any) -> Any:
    """Every object or list with the place of each of its values."""
    if isinstance(tree, (dict, list)):
        for place, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, place
            yield from _holders(value)


def encoded(draw: Random, text: str) -> bytes:
    """The text as a file's bytes: mostly UTF-8, sometimes not, sometimes damaged."""
    how = draw.random()
    if how < 0.85:
        return text.encode("utf-8", "surrogatepass")
    if how < 0.9:
        return text.encode(draw.choice(("utf-8-sig", "utf-16", "utf-32", "cp500")), "replace")
    return altered(draw, text.encode("utf-8", "surrogatepass"), b'{"a": [1, 2, {"b": "\xff"}]}')


def special(draw: Random, path: Path) -> None:
    """Something at this path that is no ordinary file."""
    how = draw.randrange(9)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.mkdir()
    elif how == 2:
        path.symlink_to(path.name)
    elif how == 3:
        path.symlink_to(draw.choice(("/dev/zero", "/dev/urandom", "/dev/full", "/dev/null", "/proc/self/mem")))
    elif how == 4:
        with path.open("wb") as file:
            file.truncate(20 << 30)
    elif how == 5:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    elif how == 6:
        path.symlink_to("nowhere")
    elif how == 7:
        path.write_bytes(b"")
    else:
        path.write_bytes(
            draw.choice((b"\0", b"\xff\xfe", b"PK\x05\x06" + b"\0" * 18, b"\x1f\x8b\x08", b"%!PS\n", b"{" * 99))
        )

"""How the text of an option becomes a value. Each function but the last raises `ValueError` for any other text."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from backdoor_audit.errors import OptionError
from backdoor_audit.structure import brief

LEAST_MEMORY = 256 * 2**20
MOST_MEMORY = 2**50
MOST_COUNT = 10**9
"""Of classes, images, steps: more is a slip, and numbers of any size break what counts with them."""
MOST_SIDE = 2**15
"""px that an image may be resized to, along either side."""
MOST_SECONDS = 10**9
LONGEST = 300
"""Characters of a text in a message."""
_BETWEEN = re.compile(r"\s*,\s*|\s+")
_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
_TIME = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m(?:in)?)?(?:{_NUMBER}s(?:ec)?)?")
_SIZE = re.compile(rf"{_NUMBER}(?:([kmgt])(i?b)?|b)?")


def word(text: str) -> str:
    """Any text but an empty one."""
    if not text:
        raise ValueError("must not be empty")
    if "\0" in text:
        raise ValueError("must not hold a null character")
    return text


def path(text: str) -> str:
    """A path, with the home folder in place of ``~`` where it begins so: shells leave it alone behind ``=``."""
    return os.path.expanduser(word(text))


def numbers(text: str) -> tuple[float, ...]:
    """Finite numbers with commas or spaces between them."""
    values = tuple(float(part) for part in _BETWEEN.split(text.strip()))
    if not all(map(math.isfinite, values)):
        raise ValueError("not finite")
    return values


def spread(text: str) -> tuple[float, ...]:
    """`numbers` above 0."""
    values = numbers(text)
    if min(values) <= 0:
        raise ValueError("must be above 0")
    return values


def size(text: str) -> tuple[int, ...]:
    """Height and width in px; one number is both."""
    values = tuple(int(part) for part in _BETWEEN.split(text.strip().lower().replace("x", ",")))
    if len(values) not in (1, 2) or min(values) < 1:
        raise ValueError("must be N, HxW or H,W")
    if max(values) > MOST_SIDE:
        raise ValueError(f"must be at most {MOST_SIDE} px along either side")
    return values * 2 if len(values) == 1 else values


def whole_number(least: int, most: int = MOST_COUNT) -> Callable[[str], int]:
    """A function that reads a number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        plain = re.sub(r"(?<=[0-9])[,'\s](?=[0-9]{3}(?![0-9]))", "", text.strip())
        if plain != text.strip() and plain.isdecimal():
            raise ValueError(f"must be written without separators: {plain[:LONGEST]}")
        value = int(text)
        if value < least:
            raise ValueError(f"must be at least {least}")
        if value > most:
            raise ValueError(f"must be at most {most}")
        return value

    return parse


def rate(text: str) -> float:
    """A fraction in [0, 1]."""
    percent = text.strip().endswith("%")
    value = float(text.strip().removesuffix("%"))
    if percent or not 0 <= value <= 1:
        instead = f"; write {value / 100:g}" if 0 <= value <= 100 else ""
        raise ValueError(f"must lie in [0, 1] (rates are fractions, not percent){instead}")
    return value


def most_images(text: str) -> int:
    """A number of images, 1 at least."""
    if text.strip().lower() in ("all", "max", "none", "unlimited"):
        raise ValueError(f"must be a number; for all images write one that is large enough, such as {10**6}")
    return whole_number(1)(text)


def duration(text: str) -> float:
    """A time in seconds: ``90s``, ``10min``, ``1h30m``, or a number of seconds."""
    parts = _TIME.fullmatch("".join(text.lower().split()))
    if parts is not None and any(parts.groups()):
        hours, minutes, seconds = (float(part or 0) for part in parts.groups())
        value = 3600 * hours + 60 * minutes + seconds
    else:
        value = float(text)
    if not 0 < value <= MOST_SECONDS:
        raise ValueError(f"must be a time above 0: 90s, 10m or 1h30m (at most {MOST_SECONDS} s)")
    return value


def size_in_bytes(text: str) -> int:
    """A number of bytes: ``8G`` and ``8GiB`` count in powers of 1024, ``8GB`` in powers of 1000."""
    parts = _SIZE.fullmatch("".join(text.lower().split()))
    number, unit, tail = parts.groups() if parts is not None else (text, "", None)
    value = float(number) * (1000 if tail == "b" else 1024) ** " kmgt".index(unit or " ")
    if not LEAST_MEMORY <= value <= MOST_MEMORY:
        raise ValueError(
            "must be at least 256M and at most 1024T: a number of bytes, or of K, M, G, T (1024) or KB, MB, GB, TB (1000)"
        )
    return int(value)


def one_of(*choices: str) -> Callable[[str], str]:
    """A function that takes these words alone."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def device(text: str) -> str:
    """The name of a device."""
    kind, _, number = text.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (
        number and not (kind == "cuda" and number.isdecimal() and len(number) < 4)
    ):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return text


def channels(text: str) -> int:
    """1 or 3."""
    if text not in ("1", "3"):
        raise ValueError("must be 1 (grey) or 3 (RGB)")
    return int(text)


def switch(text: str) -> bool:
    """``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def named(text: str) -> str:
    """A path or a name as it stands in a message: as it is, or in a few words where it is too long for a line."""
    return text if len(text) <= LONGEST else brief(text)


class RaisingParser(argparse.ArgumentParser):
    """Raises an `OptionError` that begins with ``where``, in place of ending the process."""

    where = ""

    def error(self, message: str) -> NoReturn:
        """What argparse calls for arguments that it does not take."""
        raise OptionError(f"{self.where}{message}")


def expanded(arguments: Sequence[str], where: str = "") -> list[str]:
    """Arguments with those in files that ``@FILE`` names, as pytest reads them.

    Raises `OptionError` that begins with ``where`` for a file that cannot be read.
    """
    parser = RaisingParser(fromfile_prefix_chars="@", add_help=False, allow_abbrev=False, prefix_chars="\0")
    parser.where = where
    parser.add_argument("all", nargs="*")
    found: list[str] = parser.parse_args(list(arguments)).all
    return found

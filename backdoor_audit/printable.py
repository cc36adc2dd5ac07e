"""The one place where text from outside (names, paths, records, options, messages) becomes text that may be shown anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_JOINERS = frozenset("\u200c\u200d")  # parts of words and of emoji, although Python calls them not printable
_COMMAND = re.compile(r"(?<!\S):{2,}")  # GitHub: a line that begins with :: is a command to the runner
_LONGEST_WORD = 400  # characters of a path, a name or a number in a message
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
_OLD_COMMAND = re.compile(r"#(?=#\w*\[)")  # GitHub and Azure: ##[ and ##vso[ anywhere in a line


def printable(text: str) -> str:
    """The text on one line without anything that a terminal, a page or a CI runner would obey.

    White space becomes single spaces, and other characters that cannot be printed (controls, directions of writing, lone
    surrogates) become their escapes, as in ``\\x1b``. What CI runners take for a command is broken by a space. Printable text
    stays as it is, and so does the outcome.
    """
    flat = " ".join(text.split())
    if not flat.isprintable():
        flat = "".join(
            character if character.isprintable() or character in _JOINERS else _escaped(character) for character in flat
        )
    flat = _COMMAND.sub(lambda found: " ".join(found.group()), flat)
    return _OLD_COMMAND.sub("# ", flat)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def listed(texts: Sequence[str], most: int = 10, between: str = ", ") -> str:
    """The first texts, long ones without their middle, and how many more there are."""
    more = f"{between.strip(', ')} and {len(texts) - most} more" if len(texts) > most else ""
    return between.join(map(shortened, texts[:most])) + more


def shortened(text: str, most: int = 200) -> str:
    """The text; of one with more characters its beginning and its end, by which names mostly differ, and how long it is."""
    if len(text) <= most:
        return text
    note = f" ... ({len(text)} characters) ... "
    half = (most - len(note)) // 2
    return text[:half] + note + text[-half:]


def line_of(message: str) -> str:
    """A message as one printable line in which no path, name or number is so long that the rest is lost."""
    return _LONG_WORD.sub(lambda word: shortened(word.group(), _LONGEST_WORD), printable(message))


def printable_parts(value: Any) -> Any:
    """The same mapping, list or text with every text in it made printable, keys as well; anything else as it is."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_parts(key): printable_parts(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable_parts(entry) for entry in value]
    return value


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

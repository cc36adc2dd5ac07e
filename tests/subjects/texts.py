"""The texts of the project, taken apart: pages, blocks of code, commands, links, headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    + [file for file in DOCS.rglob("*.md") if "_build" not in file.parts]
)
TODAYS = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages that say how it is; the changelog says how it was."""
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

_FENCE = re.compile(r" *```(.*)")
_SEPARATORS = {";", "&&", "||", "|"}
_KEYWORDS = {"do", "then", "else"}


@dataclass(frozen=True)
class Block:
    """A block of code in a page: its language, its first line's number, and what is in it."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command in a text, as words."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def name_of(page: Path) -> str:
    """The page as seen from the root."""
    return page.relative_to(ROOT).as_posix()


@cache
def text_of(page: Path) -> str:
    """What is in a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    """Its blocks of code, in order. Raises `AssertionError` for one that is not closed."""
    found, language, start, inside = [], None, 0, []
    for number, line in enumerate(text_of(page).splitlines(), 1):
        fence = _FENCE.fullmatch(line)
        if fence and language is None:
            language, start, inside = fence[1].strip(), number, []
        elif fence and not fence[1]:
            found.append(Block(page, start, language or "", "\n".join(inside)))
            language = None
        else:
            inside.append(line)
    assert language is None, f"{name_of(page)}:{start} is not closed"
    return found


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    kept, inside = [], False
    for line in text_of(page).splitlines():
        if _FENCE.fullmatch(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def commands(where: str, script: str) -> Iterator[Command]:
    """The commands in a few lines of shell; without keywords, assignments and comments."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        part: list[str] = []
        for word in [*words, ";"]:
            if word not in _SEPARATORS:
                part.append(word)
                continue
            while part and (part[0] in _KEYWORDS or re.fullmatch(r"\w+=.*", part[0])):
                part.pop(0)
            if part and part[0] not in ("for", "done"):
                yield Command(where, tuple(part))
            part = []


def shell_commands(page: Path) -> list[Command]:
    """Those in blocks of shell."""
    return [command for block in blocks(page) if block.language == "sh" for command in commands(str(block), block.text)]


def inline_commands(page: Path) -> list[Command]:
    """Those in the running text: code that begins with a program of ours, square brackets taken off."""
    found = re.findall(r"`((?:pytest|backdoor-audit|python -m) [^`]+)`", prose(page))
    return [
        command
        for text in found
        for command in commands(name_of(page), re.sub(r"(?<= )\[([^\]]*)\]", r"\1", text.replace("\n", " ")))
    ]


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page point, but for other sites."""
    found = re.findall(r"\]\(([^()\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"[a-z]+://|mailto:", target)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """What its headings are called in links, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)

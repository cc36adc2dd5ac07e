"""Calls of ``backdoor-audit``, and what came of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from backdoor_audit import cli


class Refused(Exception):  # noqa: N818 - no error of the tool: what the product answered
    """The product ended with its exit code for wrong input; the message is what it printed."""


class Command(NamedTuple):
    """Arguments of ``backdoor-audit`` and the files that it may write."""

    arguments: Sequence[str]
    written: Sequence[Path] = ()


def command(given: Command) -> Iterable[str]:
    """What one call of ``backdoor-audit`` printed and wrote. Raises `Refused` with what it said of wrong input."""
    out, err = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(stream, "utf-8", newline="") for stream in (out, err)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            code: Any = cli.main(given.arguments)
        except SystemExit as ended:
            code = ended.code
        for stream in streams:
            stream.flush()
    said = [stream.getvalue().decode() for stream in (out, err)]
    if code == cli.USAGE_ERROR:
        raise Refused(_without_usage(said[1]))
    return [*said, *(_written(file) for file in given.written if file.exists())]


def _without_usage(text: str) -> str:
    """What argparse says below its lines on usage."""
    lines = text.split("\n")
    if lines[0].startswith("usage: "):
        del lines[0]
        while lines and lines[0].startswith(" "):
            del lines[0]
    return "\n".join(lines)


def _written(file: Path) -> str:
    """The text of a rendering; of SARIF the texts inside, as its readers see them."""
    text = file.read_text(encoding="utf-8")
    return "\n".join(_texts(json.loads(text))) if file.suffix == ".sarif" else text


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value.replace("\n", " ")  # a text of several lines is no line of a log
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)

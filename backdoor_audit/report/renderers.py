"""What is drawn from a record: one file each, for people and for other programs."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backdoor_audit.evidence import Record
from backdoor_audit.files import whole
from backdoor_audit.report.html import page
from backdoor_audit.report.markdown import markdown
from backdoor_audit.report.paths import MARKDOWN, PAGE, RECORD, SARIF
from backdoor_audit.report.picture_files import FOLDER, pictures
from backdoor_audit.report.sarif import sarif


class Draw(Protocol):
    """The text of one file, from a record alone."""

    def __call__(self, record: Record, *, folder: Path | None, exit_code: int | None) -> str:
        """``folder`` is where the file will stand, None for a text alone; ``exit_code`` is that of the run, if there was one."""


@dataclass(frozen=True, slots=True)
class Renderer:
    """One form of a record: its option of ``backdoor-audit export``, its file in the folder of a run, and what it is in words."""

    name: str
    file: str
    draw: Draw
    what: str = ""


def _page(record: Record, *, folder: Path | None, exit_code: int | None) -> str:
    del folder, exit_code
    return page({RECORD: record})


def _markdown(record: Record, *, folder: Path | None, exit_code: int | None) -> str:
    del exit_code
    return markdown(record, pictures=_written(record, folder) if folder else ())


def _sarif(record: Record, *, folder: Path | None, exit_code: int | None) -> str:
    del folder
    return json.dumps(sarif(record, exit_code=exit_code), indent=1, allow_nan=False) + "\n"


def _written(record: Record, folder: Path) -> tuple[str, ...]:
    """The pictures of the trigger, written; their paths from the folder. A picture that cannot be written is left out."""
    written = []
    for name, content in pictures(record).items():
        with contextlib.suppress(OSError):
            (folder / FOLDER).mkdir(exist_ok=True)
            with whole(folder / FOLDER / name) as partial:
                partial.write_bytes(content)
            written.append(f"{FOLDER}/{name}")
    return tuple(written)


RENDERERS: tuple[Renderer, ...] = (
    Renderer("page", PAGE, _page, "the page for people (HTML)"),
    Renderer("markdown", MARKDOWN, _markdown, "GitHub-flavoured Markdown"),
    Renderer("sarif", SARIF, _sarif, "SARIF 2.1.0"),
)


FILES = (RECORD, *(renderer.file for renderer in RENDERERS))
"""What a run leaves in its folder."""

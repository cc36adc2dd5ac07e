"""What a run leaves in its folder: the record, and its renderings for people and machines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from backdoor_audit.evidence import Record
from backdoor_audit.files import whole, write_text
from backdoor_audit.report.html import page
from backdoor_audit.report.markdown import markdown
from backdoor_audit.report.paths import MARKDOWN, PAGE, RECORD, SARIF
from backdoor_audit.report.picture_files import FOLDER, pictures
from backdoor_audit.report.sarif import sarif


def write_files(
    record: Record, folder: Path, *, exit_code: int | None = None
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write the record into an existing folder, then each of its renderings by itself; what was written, and what failed.

    A failure is one clause that begins with the name of the file. In its place nothing is left, not that of another run
    either. Raises `OSError` if the record itself cannot be written; then there are no renderings.
    """
    renderings: dict[str, Callable[[], str]] = {
        PAGE: lambda: page({RECORD: record}),
        MARKDOWN: lambda: markdown(record, pictures=_drawn(record, folder)),
        SARIF: lambda: json.dumps(sarif(record, exit_code=exit_code), indent=1, allow_nan=False),
    }
    record.write(folder / RECORD)
    written, failed = [folder / RECORD], []
    for name, render in renderings.items():
        try:
            write_text(folder / name, render().rstrip() + "\n")
        except Exception as error:  # whatever it is, the other renderings do not depend on it
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
            failed.append(f"{name} could not be written ({' '.join(f'{type(error).__name__}: {error}'.split())})")
        else:
            written.append(folder / name)
    return tuple(written), tuple(failed)


def _drawn(record: Record, folder: Path) -> tuple[str, ...]:
    """The pictures of the trigger, written; their paths from the folder. A picture that cannot be written is left out."""
    drawn = []
    for name, content in pictures(record).items():
        with contextlib.suppress(OSError):
            (folder / FOLDER).mkdir(exist_ok=True)
            with whole(folder / FOLDER / name) as partial:
                partial.write_bytes(content)
            drawn.append(f"{FOLDER}/{name}")
    return tuple(drawn)

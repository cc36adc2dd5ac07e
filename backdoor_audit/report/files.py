"""What a run leaves in its folder: the record, and its renderings for people and machines."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from backdoor_audit.evidence import Record
from backdoor_audit.files import write_text
from backdoor_audit.report.paths import RECORD
from backdoor_audit.report.renderers import RENDERERS, Renderer


def write_files(
    record: Record, folder: Path, *, exit_code: int | None = None, renderers: Sequence[Renderer] = RENDERERS
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write the record into an existing folder, then each of its renderings by itself; what was written, and what failed.

    A failure is one clause that begins with the name of the file. In its place nothing is left, not that of another run
    either. Raises `OSError` if the record itself cannot be written; then there are no renderings.
    """
    record.write(folder / RECORD)
    written, failed = [folder / RECORD], []
    for renderer in renderers:
        name = renderer.file
        try:
            text = renderer.draw(record, folder=folder, exit_code=exit_code)
            write_text(folder / name, text.rstrip() + "\n")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever it is, SystemExit as well, the other renderings do not depend on it
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
            failed.append(f"{name} could not be written ({' '.join(f'{type(error).__name__}: {error}'.split())})")
        else:
            written.append(folder / name)
    return tuple(written), tuple(failed)

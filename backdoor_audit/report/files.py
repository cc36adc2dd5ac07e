"""What a run leaves in its folder: the record, and its renderings for people and machines."""

from __future__ import annotations

import json
from pathlib import Path

from backdoor_audit.evidence import Record
from backdoor_audit.report.html import page
from backdoor_audit.report.markdown import markdown
from backdoor_audit.report.paths import FILES, MARKDOWN, PAGE, RECORD, SARIF
from backdoor_audit.report.sarif import sarif


def write_files(record: Record, folder: Path, *, exit_code: int | None = None) -> tuple[Path, ...]:
    """Write `FILES` into an existing folder, the record first, and return their paths. Raises `OSError`."""
    record.write(folder / RECORD)
    log = json.dumps(sarif(record, exit_code=exit_code), indent=1)
    for name, text in ((PAGE, page({RECORD: record})), (MARKDOWN, markdown(record)), (SARIF, log)):
        (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")
    return tuple(folder / name for name in FILES)

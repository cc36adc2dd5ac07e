"""Paths as they may be shown to others: without the folders of the machine that ran the audit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from backdoor_audit.evidence import Record
from backdoor_audit.options import Role, options_with
from backdoor_audit.report.reproduction import reproduction_command

_ABSOLUTE = re.compile(r"(?<![\w.:/\\-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\:'\"<>|]+[/\\])+([^\s/\\:'\"<>|]*)")

RECORD, PAGE, MARKDOWN, SARIF = "audit.json", "audit.html", "audit.md", "audit.sarif"


def shown_path(path: str) -> str:
    """A relative path as it is; of any other, and of one that climbs out of the folder, the last part alone."""
    if path.startswith("torchvision:"):
        return re.sub("root=[^&]*", "root=DIR", path)
    parts = path.replace("\\", "/").rstrip("/").split("/")
    outside = parts[0] in ("", "~") or ".." in parts or re.fullmatch("[A-Za-z]:", parts[0])
    return parts[-1] if outside else str(PurePosixPath("/".join(parts)))


def without_folders(text: str) -> str:
    """The same sentence with every absolute path in it shortened to its last part."""
    return _ABSOLUTE.sub(r"\1", text)


def shown_command(record: Record) -> str:
    """The command that makes the record again, with the files that lie outside named without folders.

    An empty string where no command line can: the model or the images were handed over in Python.
    """
    return reproduction_command(shown_files(record))


def shown_files(record: Record) -> Record:
    """The record with the files of its settings named as they may be shown to others."""
    named = [name for name in options_with(Role.PATH) if name != "report" and record.settings.get(name)]
    shortened = {name: shown_path(str(record.settings[name])) for name in named}
    return replace(record, settings={**record.settings, **shortened})

"""Whether the files of a run are at its end what they were at its beginning, and the same for every process of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from backdoor_audit import bounds
from backdoor_audit.files import UnreadableError, refuse_special
from backdoor_audit.model.loading import fingerprint_of, parts_of
from backdoor_audit.options import AuditOptions

OPTIONS = ("model", "trigger", "reference", "twins", "baseline")
"""Whose files decide what a run finds. Images are held in memory and have a fingerprint of their own."""


def audited_files(options: AuditOptions) -> dict[str, Path]:
    """Where each of these files is, by what the option calls it. A baseline that the run is to write is left out."""
    files = {name: str(getattr(options, name)) for name in OPTIONS}
    if options.update_baseline:
        del files["baseline"]
    return {f"--audit-{name}={file}": Path(os.path.abspath(file)) for name, file in files.items() if file}


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each file, by the same names; none for one that reading will refuse."""
    found = {name: _digest(file) for name, file in files.items()}
    return {name: digest for name, digest in found.items() if digest}


def _digest(path: Path) -> str:
    try:
        if all(refuse_special(part) <= bounds.current().memory for part in parts_of(path)):
            return fingerprint_of(path)
    except (OSError, ValueError, UnreadableError):
        pass
    return ""

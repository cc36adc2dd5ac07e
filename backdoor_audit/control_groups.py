"""The control groups around this process, of both versions: what containers and CI runners bound it by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def around(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folder of each group that may bound ``controller``, narrowest first, and whether it is of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        first = controllers != ""
        if first and controller not in controllers.split(","):
            continue
        top, group = root / "sys/fs/cgroup" / (controller if first else ""), Path(path.lstrip("/"))
        for folder in (top / group, *(top / parent for parent in group.parents)):
            yield folder, first


def number(file: Path) -> int | None:
    """The whole number that a file holds; None for any other word, such as max, and for no file."""
    try:
        return int(file.read_bytes())
    except (OSError, ValueError):
        return None

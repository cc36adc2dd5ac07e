"""Packages of others, as an installer leaves them in a folder: a module, and metadata with entry points."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    source: str,
    points: Mapping[str, tuple[str, ...]],
    *,
    name: str = "example-parts",
    version: str = "1.2",
) -> None:
    """A package of one module with this source, found from now on; ``points`` are lines ``NAME = OBJECT`` by group."""
    module = name.replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in points.items():
        lines.append(f"[backdoor_audit.{group}]")
        lines += [f"{entry} = {module}:{thing}" for entry, _, thing in (entry.partition(" = ") for entry in entries)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.invalidate_caches()

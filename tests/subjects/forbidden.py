"""A folder that may be listed and not entered, also for root, who may enter any."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """From here on nothing in the folder can be looked at, as after ``chmod 444``."""
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, _guarded(getattr(os, name), folder))
    if accessor := getattr(pathlib, "_NormalAccessor", None):  # Python 3.10 looks it up once
        monkeypatch.setattr(accessor, "stat", staticmethod(os.stat))
    return folder


def _guarded(look: Callable[..., os.stat_result], folder: Path) -> Callable[..., os.stat_result]:
    def guarded(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if isinstance(path, (str, Path)) and folder in Path(path).parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path, *rest, **more)

    return guarded

"""Runs with other parts than the shipped ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backdoor_audit.catalogue import Catalogue


def choose(monkeypatch: pytest.MonkeyPatch, **groups: tuple[Any, ...]) -> None:
    """Runs that begin from now on have these parts, each group in place of the shipped one."""
    chosen = replace(Catalogue.installed(), **groups)
    monkeypatch.setattr(Catalogue, "installed", lambda: chosen)

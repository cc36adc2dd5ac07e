"""Runs of pytest on the toy project, and the record that they leave."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backdoor_audit.evidence import Record

Run = Callable[..., pytest.RunResult]
BASE = ("--data=images.npz", "--arch=toy:network", "--audit-steps=150", "--device=cpu", "--audit-profile=quick")


def record_of(project: pytest.Pytester, folder: str = "backdoor-audit-report") -> Record:
    """The record that the last run left."""
    return Record.read(project.path / folder / "audit.json")

"""Pages are drawn with charts that another test has drawn."""

from __future__ import annotations

import pytest

from tests.subjects.drawn import draw_once


@pytest.fixture(autouse=True)
def charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pages here are of the same few records."""
    draw_once(monkeypatch)

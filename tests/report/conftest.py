"""Pages are drawn with charts that another test has drawn, unless a test asks for ``drawn_anew``."""

from __future__ import annotations

import pytest

from tests.subjects.drawn import draw_once


@pytest.fixture
def drawn_anew() -> None:
    """Every chart is drawn in this test."""


@pytest.fixture(autouse=True)
def charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pages here are of the same few records."""
    if "drawn_anew" not in request.fixturenames:
        draw_once(monkeypatch)

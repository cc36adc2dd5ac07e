"""Charts of the same numbers, drawn once for all pages of a test run: a chart takes longer than the rest of its page.

`test_charts.py` says that the same numbers give the same chart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backdoor_audit.report import certainty, charts, measurements


def _once(draw: Callable[..., str]) -> Callable[..., str]:
    kept: dict[str, str] = {}

    def drawn(*arguments: Any, **named: Any) -> str:
        asked = repr((arguments, named))
        if asked not in kept:
            kept[asked] = draw(*arguments, **named)
        return kept[asked]

    return drawn


CHARTS = (
    (charts, "size_chart"),
    (charts, "index_chart"),
    (charts, "norm_chart"),
    (charts, "curve_chart"),
    (certainty, "null_chart"),
    (measurements, "repair_chart"),
)
DRAWN = [(module, name, _once(getattr(module, name))) for module, name in CHARTS]


def draw_once(patch: pytest.MonkeyPatch) -> None:
    """Let pages take the charts that were drawn before."""
    for module, name, draw in DRAWN:
        patch.setattr(module, name, draw)

"""What a fleet of fake gates is given, and what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

Fleet = Callable[..., int]


def detections(*p_values: float | None) -> list[dict[str, object]]:
    return [
        {"detector": f"d{number}", "p_value": value, "inconclusive": "" if value is not None else "no answer"}
        for number, value in enumerate(p_values)
    ]


def write_images(file: Path, value: int = 0) -> None:
    """Two images of one colour."""
    np.savez(file, images=np.full((2, 4, 4, 3), value, np.uint8), labels=np.arange(2))


def asked(place: Path) -> list[dict[str, object]]:
    """What the gate was asked, in order."""
    log = place / "asked.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

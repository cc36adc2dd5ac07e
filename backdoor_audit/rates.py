"""How often the audit is right, as it was measured: what stands beside every verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from backdoor_audit.model.metrics import Rate
from backdoor_audit.search.anomaly import shipped_nulls


@cache
def _stored() -> dict[str, Any]:
    text = resources.files("backdoor_audit").joinpath("measured_rates.json").read_text()
    stored: dict[str, Any] = json.loads(text)
    return stored


def measured_rates(detections: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """One sentence for each group of models measured by ``python -m benchmarks.calibrate_steering``.

    Of those that were compared as the model of these ``detections`` was, if there are any; else of all.
    """
    references = [str(entry.get("reference", "")) for entry in detections]
    kinds = {null.twins for null in shipped_nulls() if any(null.source in told for told in references)}
    rates = _stored()["rates"]
    chosen = [entry for entry in rates if entry["twins"] in kinds] or rates
    return [sentence(entry["stopped"], entry["models"], entry["which"]) for entry in chosen]


def sentence(stopped: int, models: int, which: str) -> str:
    """``1 of 74 clean networks ... stopped = 1.4 % [0.2 %, 7.3 %]``, with the 95 % Wilson interval."""
    rate = Rate(stopped, models)
    low, high = rate.interval
    return f"its detectors flag {stopped} of {models} {which} = {rate:.1%} [{low:.1%}, {high:.1%}]"

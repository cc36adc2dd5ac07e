"""Figures of the files that the benchmarks wrote, as the texts write them."""

from __future__ import annotations

import json
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from backdoor_audit.model.metrics import Rate
from tests.subjects.texts import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def stored(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def told(hits: int, n: int, digits: int = 1) -> str:
    """``3 of 35 = 8.6 % [3.0 %, 22.4 %]``, as the texts write it."""
    rate = Rate(hits, n)
    low, high = rate.interval

    def percent(share: float) -> str:
        return f"{100 * share:.{digits}f} %" if share else "0 %"

    return f"{hits} of {n} = {percent(rate)} [{percent(low)}, {percent(high)}]"


def rounded(value: float, digits: int = 0) -> str:
    """Halves go up, as a reader rounds; what floats leave of a half counts as one."""
    exact = Decimal(str(round(value, 9)))
    return str(exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)

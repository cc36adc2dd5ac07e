"""Rows of detections and references made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from backdoor_audit.detectors import ByMargin, BySize, Compared, Detection, Natural, Row
from backdoor_audit.search.anomaly import SteeringNull, shipped_null
from backdoor_audit.search.twins import Twins

_PLAIN = {"success_val": 0.9, "index": 3.0, "p_value": 0.01, "image_passes": 1}


def size_row(target_class: int | None = 4, **values: Any) -> Row:
    """A row by size: of these values, those of `Row` and those of `BySize`."""
    return _row(BySize, {"size": 10.0, "size_ratio": 1.0}, target_class, values)


def margin_row(target_class: int | None = 4, **values: Any) -> Row:
    """A row by margin: of these values, those of `Row` and those of `ByMargin`."""
    return _row(ByMargin, {"margin": 1.0}, target_class, values)


def _row(
    kind: type[BySize] | type[ByMargin], defaults: dict[str, Any], target_class: int | None, values: dict[str, Any]
) -> Row:
    own = {entry.name for entry in fields(kind)}
    measured = kind(**{**defaults, **{name: value for name, value in values.items() if name in own}})
    rest = {name: value for name, value in values.items() if name not in own}
    return Row(**{**_PLAIN, **rest, "target_class": target_class, "measured": measured})


@dataclass(frozen=True, eq=False)
class Shown:
    """A reference whose twins show what they are said to show; ``again`` says that a search is worth doing again."""

    shown: Natural
    null: SteeringNull = field(default_factory=shipped_null)
    missing: str = ""
    twins: Twins = field(default_factory=lambda: Twins((), ()))
    again: bool = False

    def natural(self, detector: Compared, classes: Sequence[int] = ()) -> Natural:
        """What was given."""
        del detector, classes
        return self.shown

    def close(self, detection: Detection) -> bool:
        """What was given."""
        del detection
        return self.again

"""The field of a race: which classes go on to a whole search, and what is known of the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from backdoor_audit.detectors.by_screening import ByScreening
from backdoor_audit.detectors.row import Row
from backdoor_audit.search.anomaly import SteeringNull
from backdoor_audit.search.racing import Race
from backdoor_audit.search.screening import Screened


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Field:
    """Who goes on beside the controls, what the screening showed of those who do not, and why some were not even screened.

    ``screened`` are margins and success rates by class; ``coverage`` is all that in words, empty if there is no race.
    """

    finalists: tuple[int, ...] = ()
    screened: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    unscreened: Mapping[int, str] = field(default_factory=dict)
    image_passes: int = 0
    coverage: str = ""

    @classmethod
    def of(cls, shown: Screened, race: Race) -> Field:
        """Of a screening of all classes."""
        classes = len(shown.margins)
        controls = race.controls_of(classes)
        finalists = race.finalists_of(shown.margins, controls)
        others = sorted(set(range(classes)) - {*controls, *finalists})
        return cls(
            finalists=finalists,
            screened={target: (float(shown.margins[target]), float(shown.success[target])) for target in others},
            image_passes=shown.image_passes,
            coverage=f"{classes} classes: {len(finalists)} finalists of a screening that led images to whichever class, and "
            f"{len(controls)} controls drawn by lot, searched in full; {len(others)} only screened",
        )

    def stopped(
        self, finalists: Iterable[Row], detector: str, null: SteeringNull | None, classes: int
    ) -> dict[int, Row]:
        """A row for every class that does not go on. None is taken to stand out further than the least of these ``finalists``.

        Where a detector has deviations, index and p-value are those of the least one by ``null``; else the least index counts.
        """
        went_on = list(finalists)
        deviation = _least(row.measured.deviation for row in went_on)
        index, p_value = _least(row.index for row in went_on), None
        if deviation is not None and null is not None:
            index, p_value = null.index(detector, deviation, classes), null.p_value(detector, deviation, classes)
        each, rest = divmod(self.image_passes, max(1, len(self.screened)))
        rows = {}
        for place, (target, (margin, success)) in enumerate(self.screened.items()):
            rows[target] = Row(
                target_class=target,
                success_val=success,
                index=index,
                p_value=p_value,
                image_passes=each + (rest if place == 0 else 0),
                measured=ByScreening(margin=margin, deviation=deviation),
            )
        for target, reason in self.unscreened.items():
            rows[target] = Row(
                target_class=target,
                success_val=math.nan,
                index=None,
                p_value=None,
                image_passes=0,
                measured=ByScreening(stopped=reason),
            )
        return rows


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)

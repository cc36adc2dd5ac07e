"""The field of a race: which classes go on to a whole search, and what is known of the others."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backdoor_audit.detectors.by_screening import ByScreening
from backdoor_audit.detectors.row import Row
from backdoor_audit.search.anomaly import SteeringNull
from backdoor_audit.search.racing import Race
from backdoor_audit.search.screening import Screened


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Field:
    """Who goes on beside so many ``controls``, what the screening showed of the others, and why some were not even screened.

    ``screened`` are margins and success rates by class; ``how`` and ``only`` say in words how finalists were named and what the
    others got. Without ``classes`` there is no race.
    """

    classes: int = 0
    finalists: tuple[int, ...] = ()
    controls: int = 0
    screened: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    unscreened: Mapping[int, str] = field(default_factory=dict)
    image_passes: int = 0
    how: str = "of a screening that led images to whichever class"
    only: str = "screened"

    @property
    def coverage(self) -> str:
        """All that in words; empty if there is no race."""
        if not self.classes:
            return ""
        parts = [
            f"{len(self.finalists)} finalists {self.how} and {self.controls} controls drawn by lot searched in full"
        ]
        parts += [f"{len(self.screened)} only {self.only}"] if self.screened else []
        parts += [f"{len(self.unscreened)} not searched, most for want of clean images"] if self.unscreened else []
        return f"{self.classes} classes: {'; '.join(parts)}"

    @classmethod
    def of(cls, shown: Screened, race: Race, lot: Sequence[int]) -> Field:
        """Of a screening of all classes, with controls by a ``lot``."""
        classes = len(shown.margins)
        controls = race.controls_of(lot)
        finalists = race.finalists_of(shown.margins, controls)
        others = sorted(set(range(classes)) - {*controls, *finalists})
        return cls(
            classes=classes,
            finalists=finalists,
            controls=len(controls),
            screened={target: (float(shown.margins[target]), float(shown.success[target])) for target in others},
            image_passes=shown.image_passes,
        )

    def joined_by(self, more: Collection[int]) -> Field:
        """The same with more controls, which do not stop."""
        return replace(
            self,
            controls=self.controls + len(more),
            screened={target: shown for target, shown in self.screened.items() if target not in more},
            unscreened={target: reason for target, reason in self.unscreened.items() if target not in more},
        )

    def stopped(self, finalists: Iterable[Row], detector: str, null: SteeringNull | None) -> dict[int, Row]:
        """A row for every class that does not go on. None is taken to stand out further than the least of these ``finalists``.

        Where a detector has deviations, index and p-value are those of the least one by ``null``; else the least index counts.
        Where no finalist has converged, nothing was shown of the others either.
        """
        went_on = list(finalists)
        deviation = _least(row.measured.deviation for row in went_on)
        index, p_value = _least(row.index for row in went_on), None
        if deviation is not None and null is not None:
            index, p_value = (
                null.index(detector, deviation, self.classes),
                null.p_value(detector, deviation, self.classes),
            )
        moving = [row.unconverged for row in went_on]
        unconverged = f"of the finalists none: {moving[0]}" if moving and all(moving) else ""
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
                unconverged=unconverged,
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

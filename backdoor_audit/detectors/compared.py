"""A search beside reference twins: with more effort where it has not converged, and twice where luck may decide."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch

from backdoor_audit.detectors.by_margin import ByMargin
from backdoor_audit.detectors.detection import Detection
from backdoor_audit.detectors.detector import Compared, Reference, no_answer
from backdoor_audit.detectors.natural import Natural
from backdoor_audit.detectors.row import Row
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.search.anomaly import SteeringNull, shipped_null

Same = TypeVar("Same", bound="BesideTwins")

MOST_DOUBLINGS = 2
"""So often a search that has not converged is done again with twice the steps."""

_STEADY = 0.5
"""What an index may rise by in the last doubling: other images and random numbers move it by as much."""


class BesideTwins:
    """For a `Compared` detector: how it is called, and with which effort."""

    __slots__ = ()

    needs_twins = True
    builds_on: ClassVar[tuple[str, ...]] = ()

    def with_options(self: Same, options: AuditOptions) -> Same:
        """The same: its effort is that at which its null distribution was measured."""
        del options
        return self

    def slow(self, detection: Detection) -> bool:
        """Never: who does not say how fast a search rises does not know whether it has all but come to its end."""
        del detection
        return False

    def __call__(
        self: Compared,
        subject: Subject,
        *,
        reference: Reference | None = None,
        found: Sequence[Detection] = (),
        generator: torch.Generator,
        progress: bool = False,
    ) -> Detection:
        """Search, and compare with twins: see `beside_twins`. Inconclusive without a ``reference``, or where `look` is."""
        del found
        return beside_twins(self, subject, reference, generator=generator, progress=progress)


def beside_twins(
    detector: Compared,
    subject: Subject,
    reference: Reference | None,
    *,
    generator: torch.Generator,
    progress: bool = False,
) -> Detection:
    """What a detector finds beside what is natural; without a ``reference`` what it reaches, and no answer.

    A search that has not converged is done again with twice the steps, and once more. If it rises even then, but slowly, its
    answer counts where the last doubling has raised no index by more than half a unit, and none is near the limit. A search that
    puts a class near the limit is done again with the halves of the images exchanged, and the mean decides.
    """
    if reference is None:
        return detector.look(subject, None, shipped_null(), generator=generator, progress=progress)
    if reference.missing:
        return no_answer(detector, reference.missing)
    try:
        natural = reference.natural(detector)
    except DegenerateScoresError as error:
        return no_answer(detector, f"in a reference twin, {error}")
    null = reference.null
    try:
        detection = _looked(detector, subject, natural, reference, generator=generator, progress=progress)
        first = before = detection
        for _ in range(MOST_DOUBLINGS):
            if not detection.unconverged:
                break
            detector = detector.with_effort(2)
            natural = reference.natural(detector)
            longer = _looked(detector, subject, natural, reference, generator=generator, progress=progress)
            before, detection = detection, replace(longer, scores=_with_passes(longer, detection))
        near = reference.close(before) or reference.close(detection)
        if detection.unconverged and detector.slow(detection) and not near:
            detection = _if_steady(first, before, detection)
        if reference.close(detection):
            searched = [row for row in detection.scores if isinstance(row.measured, ByMargin)]
            searched.sort(key=lambda row: row.place)
            named = [row.target_class for row in searched if row.target_class is not None]
            again = _looked(
                detector, subject.exchanged(), natural, reference, named=named, generator=generator, progress=progress
            )
            detection = averaged([detection, again], null, subject.num_classes)
    except DegenerateScoresError as error:
        return no_answer(detector, f"in a reference twin, {error}")
    return replace(detection, reference=f"{detection.reference}; {reference.twins.described}")


def averaged(detections: Sequence[Detection], null: SteeringNull, classes: int) -> Detection:
    """The same search on other halves of the images, as one: the rows and triggers of the first, measurements as means.

    Index and p-value are those of a mean deviation by ``null``, for so many ``classes`` of the model.
    """
    first = detections[0]
    rows = []
    for row in first.scores:
        others = [found for entry in detections if (found := entry.score(row.target_class)) is not None]
        rows.append(_mean(first.detector, row, others, null, classes))
    values = [row.p_value for row in rows if row.p_value is not None]
    return replace(
        first,
        scores=rows,
        p_value=min(values, default=None),
        inconclusive=next(filter(None, (entry.inconclusive for entry in detections)), ""),
        unconverged=next(filter(None, (entry.unconverged for entry in detections)), ""),
        unusual=next(filter(None, (entry.unusual for entry in detections)), ""),
    )


def _if_steady(first: Detection, before: Detection, detection: Detection) -> Detection:
    """The longest of three searches: it counts as come to its end if no row has an index far above that which it had before.

    How widely classes usually differ was measured with the steps of the first one; margins that still rise differ more.
    """
    risen = []
    for row in detection.scores:
        earlier = before.score(row.target_class)
        if row.unconverged or earlier is None or earlier.index is None or row.index is None:
            return detection
        risen.append(row.index - earlier.index)
    if not risen or not all(by <= _STEADY for by in risen):  # one that is not known rises by no number
        return detection
    told = f"or the last doubling of the steps may raise no index by more than {_STEADY:g}: it raised one by {max(risen):.2f}"
    return replace(detection, unconverged="", unusual=first.unusual, criterion=f"{detection.criterion}, {told}")


def _looked(
    detector: Compared, subject: Subject, natural: Natural | None, reference: Reference, **asked: Any
) -> Detection:
    """One search; what is natural for classes that it names itself comes from the same reference at the same effort."""
    return detector.look(subject, natural, reference.null, more=partial(reference.natural, detector), **asked)


def _with_passes(detection: Detection, before: Detection) -> list[Row]:
    """The rows of a search with the image passes of one before it on top."""
    spent = {row.target_class: row.image_passes for row in before.scores}
    return [replace(row, image_passes=row.image_passes + spent.get(row.target_class, 0)) for row in detection.scores]


def _mean(detector: str, row: Row, others: Sequence[Row], null: SteeringNull, classes: int) -> Row:
    """One class as several searches found it; as the first did where one of them has no deviation."""
    measured = [other.measured for other in others if isinstance(other.measured, ByMargin)]
    deviations = [entry.deviation for entry in measured if entry.deviation is not None]
    if not isinstance(row.measured, ByMargin) or len(deviations) < len(others):
        return row
    deviation = statistics.mean(deviations)
    return replace(
        row,
        success_val=statistics.mean(other.success_val for other in others),
        index=null.index(detector, deviation, classes),
        p_value=null.p_value(detector, deviation, classes),
        image_passes=sum(other.image_passes for other in others),
        unconverged=next(filter(None, (other.unconverged for other in others)), ""),
        measured=replace(
            row.measured,
            margin=statistics.mean(entry.margin for entry in measured),
            excess=statistics.mean(entry.excess for entry in measured if entry.excess is not None),
            deviation=deviation,
        ),
    )

"""Consensus: several kinds of changes lead to the same class too easily, each of them by too little to stand out alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from backdoor_audit.detectors.by_margin import ByMargin
from backdoor_audit.detectors.by_screening import ByScreening
from backdoor_audit.detectors.detection import MANY_CLASSES, RELABELLINGS, SOURCE_SPECIFIC, Detection
from backdoor_audit.detectors.detector import Cost, ImageShape, Reference
from backdoor_audit.detectors.row import Measured, Row
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.search import anomaly
from backdoor_audit.search.anomaly import SteeringNull
from backdoor_audit.triggers.trigger import AnyTrigger

RACED = "where a family did not search a class in full, it counts as far as the least of that family's finalists"
FAMILIES = ("patch_scan", "additive", "smooth", "stripes", "warping")


@dataclass(frozen=True, slots=True, kw_only=True)
class Consensus:
    """The mean over families of changes of (deviation / deviation that is an outlier by itself), class by class.

    Assumes that a backdoor makes its target easier to reach in general, as poisoned training does whose trigger no single
    family can draw: random departures of a clean model differ between families and cancel. How large the mean becomes for
    the most extreme class of a clean model was measured on clean models, with all dependence between the families in it.
    Needs the detections of the families named in ``of``, and nothing else; costs nothing.

    In a family that raced and did not search a class in full, the class counts as far as the least of the family's finalists.

    Success and trigger of a class are those of the family in which it stands out most. It has converged where every family has.
    """

    of: tuple[str, ...] = FAMILIES

    name = "consensus"
    rows = "target"
    needs_twins = True
    least_classes = anomaly.MIN_CLASSES
    blind_spots = ("triggers unlike any of the changes searched for", SOURCE_SPECIFIC, MANY_CLASSES, RELABELLINGS)

    def targets(self, num_classes: int) -> tuple[int | None, ...]:
        """The rows of a detection: every class."""
        return tuple(range(num_classes))

    @property
    def builds_on(self) -> tuple[str, ...]:
        """The families that are weighed."""
        return self.of

    def with_options(self, options: AuditOptions) -> Consensus:
        """The same: it searches nothing."""
        del options
        return self

    def cost(self, image_shape: ImageShape, classes: int, images: int) -> Cost:
        """None."""
        del image_shape, classes, images
        return Cost(0.0)

    def __call__(
        self,
        subject: Subject,
        *,
        reference: Reference | None = None,
        found: Sequence[Detection] = (),
        generator: torch.Generator,
        progress: bool = False,
    ) -> Detection:
        """Compare what the families have ``found`` on the subject: see `weighed`."""
        del subject, generator, progress
        return self.weighed(found, reference.null if reference is not None else anomaly.shipped_null())

    def weighed(self, detections: Sequence[Detection], null: SteeringNull) -> Detection:
        """What the families found on one model, as one; inconclusive if one of them is missing or has no answer."""
        found = {detection.detector: detection for detection in detections}
        missing = [name for name in self.of if name not in found or found[name].inconclusive]
        if missing:
            reason = found[missing[0]].inconclusive if missing[0] in found else f"{missing[0]} was not run"
            return self._detection((), (), reason)
        families, rows, triggers = [found[name] for name in self.of], [], []
        for target, mean in self.means(families, null).items():
            strongest = max(families, key=lambda family: (_searched(family, target), _index(family, target)))
            row = self._row(target, mean, strongest, _classes(families), null)
            moving = (score.unconverged for family in families if (score := family.score(target)) is not None)
            rows.append(replace(row, unconverged=next(filter(None, moving), "")))
            trigger = strongest.trigger(target) if target is not None else None
            triggers += [trigger] if trigger else []
        return replace(
            self._detection(rows, triggers, "", reference=families[0].reference),
            criterion=f"each of {', '.join(self.of)} has",
            unconverged=next((family.unconverged for family in families if family.unconverged), ""),
            unusual=next((family.unusual for family in families if family.unusual), ""),
            coverage=RACED if any(family.coverage for family in families) else "",
        )

    def means(self, detections: Sequence[Detection], null: SteeringNull) -> dict[int | None, float | None]:
        """The mean share of an outlier's deviation for every row; None where a family has no deviation."""
        families = [detection for detection in detections if detection.detector in self.of]
        classes = _classes(families)
        cuts = [(family.deviations, null.cut(family.detector, classes)) for family in families]
        means: dict[int | None, float | None] = {}
        for target in self.targets(classes):
            shares = [deviations[target] / cut for deviations, cut in cuts if target in deviations]
            means[target] = statistics.mean(shares) if len(shares) == len(self.of) else None
        return means

    def _row(
        self, target: int | None, mean: float | None, strongest: Detection, classes: int, null: SteeringNull
    ) -> Row:
        row = strongest.score(target)
        assert row is not None  # every family has the same rows
        return replace(
            row,
            index=None if mean is None else null.index(self.name, mean, classes),
            p_value=None if mean is None else null.p_value(self.name, mean, classes),
            image_passes=0,
            measured=_weighed(row.measured, mean, strongest.means),
        )

    def _detection(
        self, scores: Sequence[Row], triggers: Sequence[AnyTrigger], reason: str, *, reference: str = ""
    ) -> Detection:
        return Detection(
            detector=self.name,
            settings=repr(self),
            rows=self.rows,
            reference=reference,
            scores=scores,
            triggers=triggers,
            inconclusive=reason,
            p_value=min((score.p_value for score in scores if score.p_value is not None), default=None),
            means=f"{len(self.of)} kinds of changes weighed together",
            blind_spots=self.blind_spots,
        )


def _weighed(measured: Measured, mean: float | None, strongest: str) -> Measured:
    if isinstance(measured, ByMargin):
        return replace(measured, deviation=mean, strongest=strongest)
    assert isinstance(measured, ByScreening)  # no family searched the class in full
    return replace(measured, deviation=mean)


def _searched(family: Detection, target: int | None) -> bool:
    row = family.score(target)
    return row is not None and isinstance(row.measured, ByMargin)


def _index(family: Detection, target: int | None) -> float:
    row = family.score(target)
    return -math.inf if row is None or row.index is None else row.index


def _classes(detections: Sequence[Detection]) -> int:
    return sum(row.target_class is not None for row in detections[0].scores) if detections else 0

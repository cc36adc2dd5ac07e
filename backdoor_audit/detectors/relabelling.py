"""Relabelling: one small change sends every class to some class of its own, whatever the permutation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch

from backdoor_audit.detectors.by_margin import ByMargin
from backdoor_audit.detectors.compared import BesideTwins
from backdoor_audit.detectors.detection import MANY_CLASSES, SOURCE_SPECIFIC, Detection
from backdoor_audit.detectors.detector import Cost, ImageShape, More
from backdoor_audit.detectors.natural import Natural
from backdoor_audit.detectors.row import Row
from backdoor_audit.detectors.universal_perturbation import NO_GRADIENT
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.subject import Subject
from backdoor_audit.search.anomaly import SteeringNull
from backdoor_audit.search.goals import Goal
from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.search.steered import Steered
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.label_rule import Scattered
from backdoor_audit.triggers.perturbations import Additive, Smooth, Stripes, Warping

_PROBES: tuple[PatchScan | Steering, ...] = (
    PatchScan(stages=(Stage(8, 5, 8, 3, 0.08), Stage(6, 2, 8, 5, 0.1), Stage(6, 2, 12, 10, 1.0))),
    Steering(family=Additive()),
    Steering(family=Smooth()),
    Steering(family=Stripes()),
    Steering(family=Warping()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelling(BesideTwins):
    """Look for one change under which the images of each class go together to another class, a different one for each class.

    That is what an all-to-all backdoor does (Gu et al., 2017, section 4.2), whether each class goes to the next or by any other
    permutation. A natural universal perturbation has one or two dominant labels (Moosavi-Dezfooli et al., CVPR 2017, section
    4): it sends everything there. So what is measured is how many images of a class go together, times how many different
    classes they arrive at: see `relabelled`. Each kind of change is tried; of the excess over the mean of the reference twins the
    largest counts, and its scale is that of clean models (the null distribution of the reference). Without
    twins what is reached counts.

    With more than ``race_above`` classes the images of ``asked`` of them are searched with, wherever they go: those with the most
    clean images, and of equally many a lot decides. A change that relabels all classes relabels these.

    Needs gradients, twins, and a few images of every class. Cost: ``per_class`` images of each class in every step, for one goal.
    """

    probes: tuple[PatchScan | Steering, ...] = _PROBES
    per_class: int = 2
    race_above: int = 20
    asked: int = 16

    name = "relabelling"
    rows = "target"
    least_classes = 2
    blind_spots = (
        "relabellings by a change that is none of those searched for",
        SOURCE_SPECIFIC,
        "triggers that ask for one class",
        MANY_CLASSES,
    )

    def targets(self, num_classes: int) -> tuple[int | None, ...]:
        """The rows of a detection: all classes at once."""
        del num_classes
        return (None,)

    def with_effort(self, share: float) -> Relabelling:
        """The same detector with that share of its steps, at least one."""
        return replace(self, probes=tuple(probe.with_effort(share) for probe in self.probes))

    def cost(self, image_shape: ImageShape, classes: int, images: int) -> Cost:
        """Of every probe, for one goal."""
        if classes > self.race_above:  # the images are taken to be spread evenly over the classes
            images = max(self.asked, images * self.asked // classes)
        least = self.per_class * self._among(classes)
        return Cost(sum(probe.passes(image_shape, measured=images, least=least, most=images) for probe in self.probes))

    def natural(
        self,
        twins: Sequence[Subject],
        *,
        classes: Sequence[int] = (),
        generator: torch.Generator,
        progress: bool = False,
    ) -> Natural:
        """The same probes on every twin; (twins, probes)."""
        del classes
        found = [self._search(twin, generator, progress) for twin in twins]
        return Natural.of([reduce(Steered.beside, row) for row in found])

    def look(
        self,
        subject: Subject,
        natural: Natural | None,
        null: SteeringNull,
        *,
        more: More | None = None,
        named: Sequence[int] = (),
        generator: torch.Generator,
        progress: bool = False,
    ) -> Detection:
        """One search with every probe, beside what is natural; it names no classes of its own.

        Inconclusive if no image can be steered.
        """
        del more, named
        found: list[Steered] = []
        reason = "" if natural is not None or null.alone else "there are no reference twins to compare with"
        try:
            found = self._search(subject, generator, progress)
        except DegenerateScoresError as error:
            reason = str(error)
        scores = [self._row(found, natural, null, subject.num_classes)] if found else []
        return Detection(
            detector=self.name,
            settings=repr(self),
            rows=self.rows,
            reference=null.source,
            scores=scores,
            triggers=(),
            inconclusive=reason,
            criterion="the model gives a gradient to follow",
            p_value=scores[0].p_value if scores else None,
            means="a small change",
            coverage=self._coverage(subject.num_classes),
            blind_spots=self.blind_spots,
        )

    def _search(self, subject: Subject, generator: torch.Generator, progress: bool) -> list[Steered]:
        wanted: tuple[Goal, ...] = (Scattered(subject.num_classes, self._asked(subject)),)
        least, halves = self.per_class * self._among(subject.num_classes), (subject.search_set, subject.held_out)
        probes = [probe.with_images(least, measured=len(subject.held_out)) for probe in self.probes]
        return [probe(subject.classifier, *halves, wanted, generator=generator, progress=progress) for probe in probes]

    def _coverage(self, classes: int) -> str:
        if classes <= self.race_above:
            return ""
        return f"images of {self.asked} of {classes} classes searched with, those with the most clean images"

    def _among(self, classes: int) -> int:
        return self.asked if classes > self.race_above else classes

    def _asked(self, subject: Subject) -> tuple[int, ...]:
        """The classes whose images are searched with; empty if that is all of them."""
        classes = subject.num_classes
        if classes <= self.race_above:
            return ()
        labels = torch.cat([subject.search_set.labels, subject.held_out.labels])
        counts = labels.bincount(minlength=classes)
        return tuple(sorted(sorted(subject.lot, key=lambda label: -int(counts[label]))[: self.asked]))

    def _row(self, found: Sequence[Steered], natural: Natural | None, null: SteeringNull, classes: int) -> Row:
        reached = [float(steered.margins[0]) for steered in found]
        usual = natural.margins.mean(dim=0).tolist() if natural is not None else [0.0] * len(found)
        excess = [here - there for here, there in zip(reached, usual, strict=True)]
        best = max(range(len(found)), key=lambda probe: excess[probe])
        known = (natural is not None or null.alone) and math.isfinite(excess[best])
        blind = all(bool(steered.blind[0]) for steered in found)
        return Row(
            target_class=None,
            success_val=float(found[best].success[0]),
            index=null.index(self.name, excess[best], classes) if known else None,
            p_value=null.p_value(self.name, excess[best], classes) if known else None,
            image_passes=sum(steered.image_passes for steered in found),
            measured=ByMargin(
                margin=reached[best],
                natural_margin=usual[best] if natural is not None and known else None,
                natural_success=float(natural.success[:, best].mean()) if natural is not None else None,
                excess=excess[best] if known else None,
                deviation=excess[best] if known else None,
                rising=None if blind else float(found[best].rising[0]),
            ),
            unconverged=NO_GRADIENT if blind else "",
        )

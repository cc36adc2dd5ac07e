"""Neural Cleanse: a backdoored class has a far smaller trigger than the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from backdoor_audit.detectors.by_size import BySize
from backdoor_audit.detectors.detection import MANY_CLASSES, RELABELLINGS, SOURCE_SPECIFIC, Detection
from backdoor_audit.detectors.detector import Cost, ImageShape, Reference
from backdoor_audit.detectors.field import Field
from backdoor_audit.detectors.row import Row
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.progress import FORWARD_ONLY
from backdoor_audit.search import anomaly
from backdoor_audit.search.inversion import MOST_SHRINKAGE, Inversion, TriggerInversion
from backdoor_audit.search.racing import Race
from backdoor_audit.search.scanning import PatchScan

BLIND_SPOTS = (
    "triggers without a small patch: blended, sinusoidal, low-frequency, warped, reflected",
    "triggers that differ from image to image (input-aware, sample-specific)",
    SOURCE_SPECIFIC,
    RELABELLINGS,
    "patches larger than about a sixth of the image",
    MANY_CLASSES,
)
MOST_UNCONVERGED = 0.5
"""So large a share of classes that still shrink leaves no median."""

NO_RACE = 10**6  # classes

_NAME_ABOVE = 43  # classes; a race of all of them costs 2.6 times what ten cost
_WINDOWS = PatchScan()
_DRAWS = 20_000
_OVERHEAD = 1.05  # less than in other searches: batches are large
_SCREENING_CORRELATION = 0.7  # of sizes at the screening's end and the search's: ranks 0.6 to 0.8 on three GTSRB models


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuralCleanse:
    """Invert a trigger for every class and look for an outlier on the small side.

    Assumes one universal patch-like trigger per infected class and a minority of infected classes. Needs gradients and a
    few hundred clean images, no labels but to leave out images of the class in question. Cost: about
    ``restarts * steps * batch_size`` image passes per class. Wang et al., IEEE S&P 2019, sections IV and V.

    With more than ``race_above`` classes most stop early: see `TriggerInversion`. Values are compared at equal effort only.

    * Classes searched in full are compared with each other. Finalists were chosen for being small, so the controls, drawn by
      lot, stand for all other classes: in the median and the MAD, each class that stopped has a value between those of two
      controls. Both rest on few values then, and vary more than those of as many classes would: the index is divided by
      as much as makes 2 mean the same share of false alarms, found by simulating such races. The paper's index is not.
    * Classes that stopped have the size, ratio and index that they had among all classes when the screening ended.

    With more than 43 classes even the screening of that race would cost too much: a screening that leads images to
    *whichever* class by small windows, as `PatchScan` has it, names the finalists instead. They and controls drawn by lot are
    searched from the first step to the last, and compared as above; the others have no trigger and no size of their own, and are
    taken to stand out no further than the least of the finalists.

    What was searched in full is the coverage of the detection.

    A class has converged when its smallest trigger shrank by at most `MOST_SHRINKAGE` over the last steps; until then it does
    not pass, for a trigger that still shrinks may yet be a small one. While `MOST_UNCONVERGED` or more of the classes that were
    searched in full still shrink, no class passes: there is no median to compare it with, and in a race nothing stands for the
    classes that stopped. What is an outlier already is one all the same.
    """

    steps: int = 100
    batch_size: int = 16
    restarts: int = 1
    race_above: int = 20

    name = "neural_cleanse"
    rows = "target"
    needs_twins = False
    builds_on = ()
    least_classes = anomaly.MIN_CLASSES
    blind_spots = BLIND_SPOTS

    def targets(self, num_classes: int) -> tuple[int | None, ...]:
        """The rows of a detection: every class."""
        return tuple(range(num_classes))

    def with_options(self, options: AuditOptions) -> NeuralCleanse:
        """With the steps and restarts of a run; ``thorough`` searches every class in full, from two starts at least."""
        searched = replace(self, steps=options.steps, restarts=options.restarts)
        if options.profile == "thorough":
            return replace(searched, restarts=max(2, options.restarts), race_above=NO_RACE)
        return searched

    def cost(self, image_shape: ImageShape, classes: int, images: int) -> Cost:
        """Of the inversions, and of what their triggers do to the held-out images."""
        if not self._naming.runs(classes):
            return Cost(self._search.passes(classes) + classes * images * FORWARD_ONLY, _OVERHEAD)
        searched = sum(self._naming.places(classes))
        screening = _WINDOWS.passes_of_screening(image_shape, rounds=self._rounds(classes), images=images)
        stamped = 2 * searched * images * FORWARD_ONLY  # the images of either half
        return Cost(self._whole.passes(searched) + stamped + screening, _OVERHEAD)

    @property
    def _search(self) -> TriggerInversion:
        return TriggerInversion(
            steps=self.steps, batch_size=self.batch_size, restarts=self.restarts, race_above=self.race_above
        )

    @property
    def _whole(self) -> TriggerInversion:
        return replace(self._search, race_above=NO_RACE)

    @property
    def _naming(self) -> Race:
        return Race(above=max(_NAME_ABOVE, self.race_above))

    def _rounds(self, classes: int) -> int:
        return math.ceil(self._naming.places(classes)[0] / 2)

    def __call__(
        self,
        subject: Subject,
        *,
        reference: Reference | None = None,
        found: Sequence[Detection] = (),
        generator: torch.Generator,
        reference_sizes: Sequence[float] | None = None,
        progress: bool = False,
    ) -> Detection:
        """Search the smallest trigger of every class, and compare the classes with each other.

        Inconclusive if fewer than half of the classes reached the success threshold, or their sizes allow no outlier test.
        ``reference_sizes``, one per class, are sizes that are natural for each class.
        """
        del reference, found
        search, field = self._search, self._field(subject, generator, progress)
        if field.classes:
            inversions = self._named(subject, field, generator, progress)
        else:
            inversions = search(subject.classifier, subject.search_set, generator=generator, progress=progress)
        full, reason = None, ""
        try:
            full = _searched_in_full(inversions, reference_sizes, others=len(field.screened))
        except DegenerateScoresError as error:
            reason = str(error)
        screened = _screened(inversions)
        rows = {
            inversion.target_class: _row(inversion, subject, full if inversion.complete else screened)
            for inversion in inversions
        }
        rows |= field.stopped([rows[target] for target in field.finalists], self.name, None)
        return Detection(
            detector=self.name,
            settings=repr(self),
            scores=[rows[target] for target in sorted(rows)],
            triggers=[inversion.trigger for inversion in inversions],
            inconclusive=reason,
            p_value=min(full.result.p_value) if full else None,
            criterion=f"the smallest trigger shrank by at most {MOST_SHRINKAGE:.0%} over the last {search.stop_patience} steps",
            unconverged=self._unconverged(inversions, search.stop_patience),
            median_size=full.result.median_size if full else None,
            cut_size=full.result.cut_size if full else None,
            coverage=field.coverage or self._coverage(inversions),
            blind_spots=BLIND_SPOTS,
        )

    def _field(self, subject: Subject, generator: torch.Generator, progress: bool) -> Field:
        """Who is searched beside the controls, where a screening names them; nobody where all classes race."""
        classes = subject.num_classes
        if not self._naming.runs(classes):
            return Field()
        shown = _WINDOWS.screened(
            subject.classifier,
            subject.search_set,
            subject.held_out,
            rounds=self._rounds(classes),
            generator=generator,
            progress=progress,
        )
        return Field.of(shown, self._naming, subject.lot)

    def _named(
        self, subject: Subject, field: Field, generator: torch.Generator, progress: bool
    ) -> tuple[Inversion, ...]:
        """Whole searches for finalists and controls."""
        controls = self._naming.controls_of(subject.lot)
        found = self._whole(
            subject.classifier,
            subject.search_set,
            generator=generator,
            classes=sorted({*controls, *field.finalists}),
            progress=progress,
        )
        return tuple(replace(inversion, control=inversion.target_class in controls) for inversion in found)

    def _unconverged(self, inversions: Sequence[Inversion], window: int) -> str:
        """Why no class passes, in words; empty if enough of the classes that were searched in full have converged."""
        reached = [inversion for inversion in inversions if inversion.complete and inversion.reached]
        moving = sum(not inversion.converged for inversion in reached)
        if not reached or moving < MOST_UNCONVERGED * len(reached):
            return ""
        taken = max(inversion.steps for inversion in reached)
        return (
            f"in {moving} of {len(reached)} classes the trigger was still shrinking after {taken} steps: by more than "
            f"{MOST_SHRINKAGE:.0%} over the last {window}, or pressed for fewer; raise --audit-steps"
        )

    def _coverage(self, inversions: Sequence[Inversion]) -> str:
        """How far a race went, in words; empty if every class was searched in full."""
        stopped = [inversion.steps for inversion in inversions if not inversion.complete]
        controls = sum(inversion.control for inversion in inversions)
        return (
            f"{len(inversions)} classes raced: {len(inversions) - len(stopped) - controls} finalists and {controls} "
            f"controls searched in full, {len(stopped)} for {max(stopped)} of {self.steps} steps"
            if stopped
            else ""
        )


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Classes that were searched with the same effort; ``positions`` say where in the result each of them is."""

    result: anomaly.Anomaly
    positions: dict[int, int]


def _searched_in_full(
    inversions: Sequence[Inversion], reference_sizes: Sequence[float] | None, *, others: int = 0
) -> _Comparison:
    """Compare the classes that were searched in full and reached, with values like the controls' for those that stopped.

    ``others`` is the number of classes that did not begin.

    Raises `DegenerateScoresError` if fewer than half of the classes are known or estimated to have reached the success
    threshold, or their sizes allow no outlier test.
    """
    complete = [row for row, inversion in enumerate(inversions) if inversion.complete]
    reached = [row for row in complete if inversions[row].reached]
    controls = [row for row in reached if inversions[row].control]
    drawn, stopped = sum(inversion.control for inversion in inversions), len(inversions) - len(complete) + others
    absent = round(stopped * len(controls) / max(drawn, 1))
    if 2 * (len(reached) + absent) < len(inversions) + others or (stopped and not controls):
        raise DegenerateScoresError(
            f"a trigger reached the success threshold for {len(reached)} of {len(complete)} classes only; raise "
            "--audit-steps, or check the model's normalisation"
        )
    sizes = [inversions[row].size for row in reached]
    natural = [reference_sizes[inversions[row].target_class] for row in reached] if reference_sizes else None
    if stopped:
        full = np.log(np.array([sizes, natural or [1.0] * len(reached)]))
        held = full[:, [position for position, row in enumerate(reached) if inversions[row].control]]
        held = held[:, np.argsort(held[0] - held[1])]
        sizes += np.exp(_stand_ins(held[0], absent)).tolist()
        natural = natural + np.exp(_stand_ins(held[1], absent)).tolist() if natural else None
    result = anomaly.anomaly(sizes, reference_sizes=natural)
    if stopped:
        result = _corrected(result, sizes, natural or [1.0] * len(sizes), len(reached) - len(controls), len(controls))
    return _Comparison(result, {inversions[row].target_class: position for position, row in enumerate(reached)})


def _screened(inversions: Sequence[Inversion]) -> _Comparison | None:
    """Compare all classes by their sizes at the end of the screening; None where that cannot be done."""
    sizes = {each.target_class: each.screening_size for each in inversions if each.screening_size is not None}
    try:
        return _Comparison(anomaly.anomaly(list(sizes.values())), {row: place for place, row in enumerate(sizes)})
    except DegenerateScoresError:
        return None


def _stand_ins(ordered: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """That many values, evenly spread over the distribution of which ``ordered`` (..., n) are n draws."""
    count = ordered.shape[-1]
    places = np.clip((np.arange(number) + 0.5) / max(number, 1) * count - 0.5, 0, count - 1)
    lower = places.astype(np.int64)
    share = places - lower
    stand_ins: NDArray[np.float64] = (
        ordered[..., lower] * (1 - share) + ordered[..., np.minimum(lower + 1, count - 1)] * share
    )
    return stand_ins


def _corrected(
    result: anomaly.Anomaly, sizes: Sequence[float], natural: Sequence[float], finalists: int, controls: int
) -> anomaly.Anomaly:
    """The same comparison with indices, p-values and cut as clean models that are raced would have them."""
    null = _race_null(len(sizes), finalists, controls)
    rate = anomaly.DETECTOR_RATE
    wider = float(np.quantile(null, 1 - rate)) / anomaly.null_quantile(len(sizes), rate)
    logs = np.log(sizes) - np.log(natural)
    centre = anomaly.median(logs.tolist()) + anomaly.median(np.log(natural).tolist())
    above = len(null) - np.searchsorted(null, result.log_index)
    return replace(
        result,
        index=tuple(value / wider for value in result.index),
        p_value=tuple(((above + 1) / (len(null) + 1)).tolist()),
        cut_size=math.exp(centre - wider * (centre - math.log(result.cut_size))),
    )


@cache
def _race_null(classes: int, finalists: int, controls: int) -> NDArray[np.float64]:
    """The largest log index of each of many simulated races without an outlier, in ascending order.

    Log sizes at the end are normal and independent from class to class, and correlated with those of the screening.
    """
    generator = np.random.default_rng([classes, finalists, controls])
    largest = []
    chunk = max(1, 2_000_000 // classes)
    for start in range(0, _DRAWS, chunk):
        shape = (min(chunk, _DRAWS - start), classes)
        values = generator.standard_normal(shape)
        noise = math.sqrt(1 - _SCREENING_CORRELATION**2) * generator.standard_normal(shape)
        order = (_SCREENING_CORRELATION * values + noise).argsort(axis=1)
        ranked = np.take_along_axis(values, order, axis=1)
        drawn = np.sort(generator.permuted(ranked[:, finalists:], axis=1)[:, :controls], axis=1)
        stand_ins = _stand_ins(drawn, classes - finalists - controls)
        counted = np.concatenate([ranked[:, :finalists], drawn, stand_ins], axis=1)
        below = np.median(counted, axis=1, keepdims=True) - counted
        largest.append(below.max(axis=1) / (anomaly.MAD_TO_DEVIATION * np.median(np.abs(below), axis=1)))
    return np.sort(np.concatenate(largest))


def _row(inversion: Inversion, subject: Subject, compared: _Comparison | None) -> Row:
    result = compared.result if compared else None
    position = compared.positions.get(inversion.target_class) if compared else None
    here = result if position is not None else None
    held_out = subject.held_out
    return Row(
        target_class=inversion.target_class,
        success_val=attack_success_rate(subject.classifier, held_out.images, held_out.labels, inversion.trigger),
        index=here.index[position or 0] if here else None,
        p_value=here.p_value[position or 0] if here else None,
        image_passes=inversion.image_passes,
        measured=BySize(
            size=inversion.size,
            size_ratio=inversion.size / result.median_size if result else None,
            reached=inversion.reached,
            success_opt=inversion.attack_success_rate,
            paper_index=here.paper_index[position or 0] if here else None,
            log_index=here.log_index[position or 0] if here else None,
            steps=inversion.steps,
            shrinkage=inversion.shrinkage,
        ),
        unconverged=_still_shrinking(inversion),
    )


def _still_shrinking(inversion: Inversion) -> str:
    """Why a class does not pass yet, in words; empty if it has converged, or if it stopped by design and others stand for it."""
    if inversion.converged or not inversion.complete:
        return ""
    if inversion.shrinkage == 1:
        return f"nothing had pressed on the size of its trigger for long enough in {inversion.steps} steps; raise --audit-steps"
    return (
        f"its trigger was still shrinking, by {inversion.shrinkage:.0%} at the end of {inversion.steps} steps; "
        "raise --audit-steps"
    )

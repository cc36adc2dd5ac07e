"""Universal perturbations against reference twins: a backdoored class is steered to far more easily than nature explains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import torch

from backdoor_audit.detectors import sources
from backdoor_audit.detectors.by_margin import ByMargin
from backdoor_audit.detectors.compared import BesideTwins
from backdoor_audit.detectors.contests import Contest, FromEach, Probe, ToEach
from backdoor_audit.detectors.detection import MANY_CLASSES, RELABELLINGS, SOURCE_SPECIFIC, Detection
from backdoor_audit.detectors.detector import Cost, ImageShape, More, no_answer
from backdoor_audit.detectors.excess import weighed
from backdoor_audit.detectors.natural import Natural
from backdoor_audit.detectors.row import Row
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.subject import Subject
from backdoor_audit.search import anomaly
from backdoor_audit.search.anomaly import SteeringNull
from backdoor_audit.search.racing import RACE, Race
from backdoor_audit.search.steered import Steered

NO_GRADIENT = "the model gave no gradient that a search could follow"


_STANDS_OUT = 1.0
"""The deviation from which a class is judged by the smaller budget if it stands out further there: below, none does."""

_SLOW = 2.0
"""So many times the rise at which a search counts as come to its end."""

NEAR = 0.75
"""The share of an outlier's deviation above which a race is judged beside twice the controls."""


@dataclass(frozen=True, slots=True, eq=False)
class _Reached:
    """What a search reached for some classes, and what is natural for them."""

    classes: tuple[int, ...]
    steered: Steered
    natural: Natural | None

    def beside(self, other: _Reached) -> _Reached:
        """The classes of both, these first."""
        known = [part.natural for part in (self, other) if part.natural is not None]
        natural = Natural.joined(known) if len(known) == 2 else None
        return _Reached((*self.classes, *other.classes), self.steered.beside(other.steered), natural)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniversalPerturbation(BesideTwins):
    """Steer the model to every class with one small change for all images; compare with twins.

    The margin reached for a class, less the mean over reference twins, less the median of all classes, is its excess: what
    is natural to the class cancels, what is private to the model stays. Without twins nothing cancels, and the index is by what
    clean models show without any. The deviation divides the excess by how much the classes of this model differ anyway (MAD, not
    below ``floor``), and weighs it by how many images obey: see `excess.weight`. The index is the deviation scaled so that 2 is
    the share of false alarms that this detector is allowed on the null distribution of the reference.

    A probe may try a smaller budget as well (`Steered.closer`). Beside twins a class counts by whichever stands out further: what
    needs the whole budget may be natural, what works with less of it than clean networks need is not.

    ``by_source`` asks instead what takes the images of one class away from it, to whichever class: a trigger made for one
    source class (Tang et al., TaCT, USENIX Security 2021) leaves images of other classes alone, so no search over all of
    them finds it. Which class it asks for is seen from where the images go.

    Assumes that one change works for most images of a class and that a minority of classes is infected. Needs gradients,
    twins, and a few hundred clean images. Cost: `Steering` about ``steps * batch_size`` image passes per class, `PatchScan`
    about 5,000, 3,000 where windows shrink; the twins cost as much each, once per data set.

    A search on the model has converged when the median class has stopped rising, by the ``criterion`` of the probe, and those on
    the twins when that holds in their mean: margins are compared at equal effort, and what all classes lack cancels. A class for
    which the model gives no gradient has not been searched. What has not converged does not pass.

    With more classes than ``race`` allows most are not searched in full. A screening that asks for *whichever* class names the
    finalists, and controls drawn by lot stand for all others: medians and spread are over them alone, as the finalists were
    chosen for being extreme. The index is by the null distribution for all classes. The spread of a dozen controls is small by
    chance now and then: where a class comes near an outlier's deviation (`NEAR`) twice as many are searched, and decide. A class
    that stopped is taken to stand out no further than the least of the finalists, all of which were ahead of it.

    By source every class needs images of its own: those with too few are not searched, finalists are named by a hasty look at
    some of the others, and the coverage of the detection says so: see `sources`.
    """

    probe: Probe
    by_source: bool = False
    floor: float = 0.3
    race: Race = RACE

    least_classes = anomaly.MIN_CLASSES

    @property
    def rows(self) -> str:
        """What a row of the detection is about."""
        return "source" if self.by_source else "target"

    @property
    def name(self) -> str:
        """That of the probe, unless it is by source."""
        return "source_scan" if self.by_source else self.probe.name

    @property
    def blind_spots(self) -> tuple[str, ...]:
        """What this detector does not see."""
        if self.by_source:
            part = "triggers of which no part works inside one window of a seventh of the image's side"
            return (part, MANY_CLASSES, "classes whose images leave them easily in clean models too")
        return (
            self.probe.blind_spot,
            SOURCE_SPECIFIC,
            MANY_CLASSES,
            RELABELLINGS,
        )

    def with_effort(self, share: float) -> UniversalPerturbation:
        """The same detector with that share of its steps, at least one."""
        return replace(self, probe=self.probe.with_effort(share))

    def cost(self, image_shape: ImageShape, classes: int, images: int) -> Cost:
        """Of one probe for every class, or of a race; images are taken to be spread evenly."""
        return self.contest.cost(image_shape, classes, images)

    def targets(self, num_classes: int) -> tuple[int | None, ...]:
        """The rows of a detection: every class; by source, every class that images leave."""
        return tuple(range(num_classes))

    def natural(
        self,
        twins: Sequence[Subject],
        *,
        classes: Sequence[int] = (),
        generator: torch.Generator,
        progress: bool = False,
    ) -> Natural:
        """The same probe on every twin, for these classes or for those that every model is asked for."""
        asked = classes or self.contest.common(twins[0])
        if not asked:
            return Natural.nothing(len(twins))
        found = [self._steered(twin, asked, generator, progress) for twin in twins]
        return Natural.of(found)

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
        """One search, or a race if there are many classes, beside what is natural.

        Inconclusive with few classes, or if no image can be steered for one of the rows.
        """
        classes, reason = subject.num_classes, ""
        if natural is None and not null.alone:
            reason = "there are no reference twins to compare with"
        elif classes < anomaly.MIN_CLASSES:
            reason = f"{classes} classes are too few to compare; at least {anomaly.MIN_CLASSES} are needed"
        contest = self.contest
        common = contest.common(subject)
        if not common:
            return self._unasked(subject, null, reason)

        def reached(wanted: Sequence[int]) -> _Reached:
            steered = self._steered(subject, wanted, generator, progress)
            return _Reached(tuple(wanted), steered, more(wanted) if natural is not None and more is not None else None)

        def hasty(probe: Probe, wanted: Sequence[int]) -> Steered:
            return self._steered(subject, wanted, generator, progress, probe)

        known = not reason
        try:
            runners, further = contest.field(subject, common, named, hasty, generator, progress=progress)
            controls = _Reached(common, self._steered(subject, common, generator, progress), natural)
            controls = controls.beside(reached(further)) if further else controls
            ahead = [reached(some) for some in contest.together(runners.finalists)]
            found = reduce(_Reached.beside, ahead, controls)
            counted, excess, spread, deviations = self._weighed(found, len(controls.classes), known=known)
            near = known and max(deviations) > NEAR * null.cut(self.name, classes)
            if runners.classes and near and not further:
                further = contest.further(subject, found.classes)
                controls = controls.beside(reached(further)) if further else controls
                runners, found = runners.joined_by(further), reduce(_Reached.beside, ahead, controls)
                counted, excess, spread, deviations = self._weighed(found, len(controls.classes), known=known)
        except DegenerateScoresError as error:
            return replace(no_answer(self, str(error)), means=self.probe.means)
        steered, natural = counted.steered, counted.natural
        rows = {
            target: self._row(number, target, steered, natural, excess[number], deviations[number], null, classes)
            for number, target in enumerate(found.classes)
        }
        rows |= runners.stopped([rows[target] for target in runners.finalists], self.name, null)
        triggers = {
            target: trigger
            for target, trigger in zip(found.classes, steered.triggers, strict=True)
            if trigger is not None
        }
        scores = [rows[target] for target in sorted(rows)]
        return Detection(
            detector=self.name,
            settings=repr(self),
            rows=self.rows,
            reference=null.source,
            scores=scores,
            triggers=() if self.by_source else tuple(triggers[target] for target in sorted(triggers)),
            away=triggers if self.by_source else {},
            inconclusive=reason,
            criterion=self.probe.criterion,
            unconverged=self._unconverged(steered, natural, len(controls.classes), spread),
            unusual=self._unusual(spread, classes, null),
            p_value=min((row.p_value for row in scores if row.p_value is not None), default=None),
            means=self.probe.means,
            coverage=runners.coverage,
            blind_spots=self.blind_spots,
        )

    def _unasked(self, subject: Subject, null: SteeringNull, reason: str) -> Detection:
        """Where too few classes have images of their own for any comparison: nothing is searched, and the coverage says so."""
        runners = sources.field(subject, (), (), ())
        rows = runners.stopped((), self.name, null)
        answer = no_answer(self, reason)
        return replace(
            answer,
            reference=null.source,
            scores=[rows[target] for target in sorted(rows)],
            criterion=self.probe.criterion,
            means=self.probe.means,
            coverage=runners.coverage,
        )

    @property
    def contest(self) -> Contest:
        """Who is searched for. By source twice the finalists, as a hasty look ranks them worse than a screening does."""
        if not self.by_source:
            return ToEach(probe=self.probe, race=self.race)
        return FromEach(probe=self.probe, race=replace(self.race, finalists=2 * self.race.finalists))

    def _steered(
        self,
        subject: Subject,
        classes: Sequence[int],
        generator: torch.Generator,
        progress: bool,
        probe: Probe | None = None,
    ) -> Steered:
        every = self.contest.goals(subject.num_classes)
        return (probe or self.probe)(
            subject.classifier,
            subject.search_set,
            subject.held_out,
            [every[target] for target in classes],
            generator=generator,
            progress=progress,
        )

    def _weighed(
        self, found: _Reached, controls: int, *, known: bool
    ) -> tuple[_Reached, list[float], float, list[float]]:
        """What counts of every class, its excess, the spread over the first so many, and deviations; NaN where that is not known.

        Beside twins a class that stands out further in a smaller budget is judged by that. The spread is that of the larger.
        """
        steered, natural = found.steered, found.natural
        if not known:
            unknown = [math.nan] * len(steered.margins)
            return found, unknown, math.nan, unknown
        shares = partial(weighed, floor=self.floor, by_lead=not self.by_source)
        excess, spread, deviations = shares(steered.margins, steered.success, natural, controls)
        if steered.closer is None or natural is None or natural.closer is None:
            return found, excess, spread, deviations
        near, _, told = shares(steered.closer.margins, steered.closer.success, natural.closer, controls)
        which = [small > max(large, _STANDS_OUT) for small, large in zip(told, deviations, strict=True)]
        found = replace(found, steered=steered.seen_closer(which), natural=natural.seen_closer(which))
        excess = [small if closer else large for closer, small, large in zip(which, near, excess, strict=True)]
        deviations = [small if closer else large for closer, small, large in zip(which, told, deviations, strict=True)]
        return found, excess, spread, deviations

    def _unconverged(self, steered: Steered, natural: Natural | None, classes: int, spread: float) -> str:
        """Why no class passes, in words; empty if the searches on the model and on its twins have come to their end.

        Margins that differ more from class to class than the floor may rise by as much more: a rise matters beside the spread.
        """
        most = self.probe.most_rising
        if self.probe.rises_with_spread and spread > self.floor:
            most *= spread / self.floor
        searched = {"this model": steered.rising.unsqueeze(0)}
        if natural is not None:
            searched["the reference twins"] = natural.rising
        for whose, rising in searched.items():
            pace = statistics.mean(anomaly.median(row[:classes].tolist()) for row in rising)
            if not pace <= most:
                return (
                    f"on {whose} the search was still rising when its steps ended: {pace:.2g}, at most {most:.2g} counts as "
                    f"come to its end ({self.probe.criterion})"
                )
        return ""

    def slow(self, detection: Detection) -> bool:
        """Whether the median class rose at most twice as fast as counts as converged: half of all progress in half the steps is
        no sign of an end, as where gradients hardly lead anywhere."""
        rising = [row.measured.rising for row in detection.scores if isinstance(row.measured, ByMargin)]
        known = [math.inf if pace is None else pace for pace in rising]
        return bool(known) and statistics.median(known) <= _SLOW * self.probe.most_rising

    def _unusual(self, spread: float, classes: int, null: SteeringNull) -> str:
        usual = null.usual_spread(self.name, classes)
        return "" if spread <= usual else f"the spread of the classes is {spread:.2g}, at most {usual:.2g} is usual"

    def _row(
        self,
        number: int,
        target_class: int | None,
        steered: Steered,
        natural: Natural | None,
        excess: float,
        deviation: float,
        null: SteeringNull,
        rows: int,
    ) -> Row:
        known = math.isfinite(deviation)
        landing = int(steered.landing[number])
        blind = bool(steered.blind[number])
        return Row(
            target_class=target_class,
            success_val=float(steered.success[number]),
            index=null.index(self.name, deviation, rows) if known else None,
            p_value=null.p_value(self.name, deviation, rows) if known else None,
            image_passes=steered.image_passes // len(steered.margins),
            measured=ByMargin(
                margin=float(steered.margins[number]),
                natural_margin=float(natural.margins[:, number].mean()) if natural else None,
                natural_success=float(natural.success[:, number].mean()) if natural else None,
                landing=landing if landing >= 0 else None,
                excess=excess if known else None,
                deviation=deviation if known else None,
                rising=None if blind else float(steered.rising[number]),
            ),
            unconverged=NO_GRADIENT if blind else "",
        )

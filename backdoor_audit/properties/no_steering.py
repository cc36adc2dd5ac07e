"""No small change, the same for all images, sends those of the other classes to one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from hypothesis import strategies as st
from torch import Tensor

from backdoor_audit.classifier import Classifier
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import BudgetSpentError, DataFormatError, DegenerateScoresError
from backdoor_audit.evidence import STEERED
from backdoor_audit.label_rule import AllToOne
from backdoor_audit.metrics import Rate, attack_success_rate
from backdoor_audit.perturbations import REFERENCE_SIDE, Additive, Family, Smooth, Warping
from backdoor_audit.properties.corpus import Counterexample
from backdoor_audit.properties.exploring import choice, explore, number
from backdoor_audit.properties.outcome import Outcome
from backdoor_audit.properties.shrinking import shrunk
from backdoor_audit.steering import Steered, Steering
from backdoor_audit.store import generator_for
from backdoor_audit.strategies import DrawnTrigger, ImageShape, Patch, in_whole_numbers
from backdoor_audit.trigger import AnyTrigger, Trigger

_RATED = 200  # images on which forms of a found trigger are compared
_LOOKED_AT = 64  # classes at a time; with more of them every example takes others
_LEAST_NATURAL = 8  # examples for each twin
_STARTS = 32  # different random starts of one family


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Free pixels in one rectangle: a family of changes for `Steering`. ``top``, ``left``, ``height``, ``width`` are px."""

    top: int
    left: int
    height: int
    width: int

    def initial(self, rows: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
        """Noise, (rows, c, height, width)."""
        return torch.rand((rows, image_shape[0], self.height, self.width), generator=generator)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Images (rows, n, c, h, w) with the pixels of their own row laid over them."""
        stamped = images.clone()
        bottom, right = self.top + self.height, self.left + self.width
        stamped[..., self.top : bottom, self.left : right] = parameters.unsqueeze(1)
        return stamped

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: ImageShape) -> Tensor:
        """Every pixel by that share of the range, in the direction's sign."""
        del image_shape
        return (parameters + share * direction.sign()).clamp(0, 1)

    def moved(self, pixels: int, image_shape: ImageShape) -> list[Window]:
        """The same rectangle that many pixels up, down, left and right, where it stays inside the image."""
        places = [
            (self.top + down, self.left + right)
            for down, right in ((-pixels, 0), (pixels, 0), (0, -pixels), (0, pixels))
        ]
        last = image_shape[1] - self.height, image_shape[2] - self.width
        return [
            replace(self, top=top, left=left) for top, left in places if 0 <= top <= last[0] and 0 <= left <= last[1]
        ]

    def trigger(self, parameters: Tensor, target_class: int, image_shape: ImageShape) -> AnyTrigger:
        """The patch."""
        mask = self.stamp(torch.ones(1, 1, self.height, self.width), torch.zeros(1, 1, 1, *image_shape[1:]))[0, 0]
        return Trigger(mask, self.stamp(parameters.unsqueeze(0), torch.zeros(1, 1, *image_shape))[0, 0], target_class)


class Changes(Protocol):
    """What counts as small, and how a search draws from it."""

    @property
    def kind(self) -> str:
        """A word for one of them."""
        ...

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Families to draw from; each is steered by gradients inside its own budget."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallPatches:
    """Squares of ``side`` px on images of 28 or 32 px, and that share of the side of others, on any place."""

    side: int = 4

    kind = "small_patch"

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Places."""
        _, height, width = image_shape
        side = max(1, min(height, width, int(self.side * max(height, width) / (REFERENCE_SIDE + 4) + 0.5)))
        return st.builds(
            Window,
            top=number(0, height - side),
            left=number(0, width - side),
            height=st.just(side),
            width=st.just(side),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FaintBlends:
    """Anything added with a root mean square of at most ``strength``, or slowly varying colours of at most ``slow_strength``.

    Both are shares of the pixel range; slow is what has 3 to 6 values a side.
    """

    strength: float = 0.02
    slow_strength: float = 0.08

    kind = "faint_blend"

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Strengths and grids."""
        del image_shape
        slow = [Smooth(grid=grid, strength=self.slow_strength) for grid in (3, 4, 6)]
        return choice((Additive(strength=self.strength), *slow))


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothWarps:
    """Flows from 4 to 8 points a side that move pixels by ``displacement`` px root mean square on images of 28 px."""

    displacement: float = 0.8

    kind = "smooth_warp"

    def families(self, image_shape: ImageShape) -> st.SearchStrategy[Family]:
        """Grids."""
        del image_shape
        return choice(tuple(Warping(grid=grid, displacement=self.displacement) for grid in (4, 5, 6, 8)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One example of the search: a family, and which of its random starts."""

    family: Family
    start: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A change that leads to a class: its success on search images, what stamps it, where it was drawn from."""

    success: float
    trigger: AnyTrigger
    family: Family


@dataclass(slots=True)
class _Reach:
    """How far a search got: the best candidate for each class, the one that refuted the property, how many examples it took."""

    best: dict[int, _Candidate] = field(default_factory=dict)
    refuting: _Candidate | None = None
    tried: int = 0

    def note(self, candidate: _Candidate) -> None:
        target_class = candidate.trigger.target_class
        if target_class not in self.best or candidate.success > self.best[target_class].success:
            self.best[target_class] = candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingSteers:
    """No change of this size sends more than a limit of the other classes' images to one class.

    Hypothesis draws where or what kind of change, a few gradient steps find its content for every class, and the mean margin
    of the class that is reached best is what the search climbs by. With more than ``classes`` classes only those that a first
    look finds nearest are steered for. What passes the limit on search images must pass it on held-out ones too; then it is
    shrunk. If nothing does, the ``pushed`` nearest that come half way are made as strong as more steps and other places make
    them, which moves hidden triggers and leaves natural ones where they are.

    The limit of a class is ``least_limit``, or ``slack`` above its natural rate where that is more: the furthest that the same
    search gets in clean reference twins. Both were chosen on the clean models of the zoo's development half
    (`python -m benchmarks.properties`).
    """

    changes: Changes
    examples: int
    steps: int
    batch_size: int
    step_share: float = 0.35
    least_limit: float = 0.7
    slack: float = 0.3
    measured: int = 32
    searched: int = 64
    classes: int = 12
    pushed: int = 2

    needs_twins = True

    @property
    def name(self) -> str:
        """What is claimed."""
        return f"no_{self.changes.kind}_steers"

    def natural(
        self, twins: Sequence[Classifier], opt: CleanSet, val: CleanSet, *, generator: torch.Generator
    ) -> tuple[float, ...]:
        """The natural rate of every class: the furthest that the same search gets in clean models, which share the examples."""
        del val
        rates = [0.0] * twins[0].num_classes
        examples = max(self.examples // len(twins), min(self.examples, _LEAST_NATURAL))
        for twin in twins:
            with suppress(DegenerateScoresError):  # a twin that gives one answer for everything shows nothing
                for target_class, candidate in self._search(twin, opt, generator, examples=examples).best.items():
                    rates[target_class] = max(rates[target_class], candidate.success)
        return tuple(rates)

    def limit(self, target_class: int, natural: Sequence[float] = ()) -> float:
        """The largest success rate that is allowed for a class of these natural rates."""
        known = natural[target_class] if natural else 0.0
        return max(self.least_limit, min(1.0, known + self.slack))

    def __call__(
        self,
        classifier: Classifier,
        opt: CleanSet,
        val: CleanSet,
        *,
        generator: torch.Generator,
        natural: Sequence[float] = (),
        kept: Sequence[Counterexample] = (),
    ) -> Outcome:
        """Search on ``opt``, judge on ``val``; ``kept`` counterexamples come first. The classifier is not changed.

        Inconclusive if the model gives the same answer for every image. Raises `BudgetSpentError` if there is no time to search.
        """
        replayed = [entry for entry in kept if entry.suits(self.name, classifier)]
        for entry in replayed:
            limit, rate = self.limit(entry.trigger.target_class, natural), _rate(classifier, val, entry.trigger)
            if rate > limit:
                return self._refuted(entry.trigger, rate, limit, kept=len(replayed), replayed=True)
        try:
            reach = self._search(classifier, opt, generator, examples=self.examples, val=val, natural=natural)
        except DegenerateScoresError as error:
            return self._outcome(value=None, limit=self.least_limit, reason=str(error), kept=len(replayed))
        known: dict[str, Any] = {"tried": reach.tried, "kept": len(replayed)}
        successes = [reach.best[row].success if row in reach.best else None for row in range(classifier.num_classes)]
        known["details"] = {"natural": list(natural), "reached": successes}
        looked = []
        for candidate in self._candidates(reach, natural):
            form, target = in_whole_numbers(candidate.trigger), candidate.trigger.target_class
            limit, refit = self.limit(target, natural), _Refit(classifier, opt, target, self, generator)
            forms = [form]
            if reach.refuting is None and candidate.success >= limit / 2:
                forms.insert(0, refit.strongest(candidate.family, form))
            rates = [_rate(classifier, val, entry) for entry in forms]
            if max(rates) > limit:
                return self._shrunk(val, candidate, refit, forms, limit, known)
            looked.append((max(rates) - limit, max(rates), limit, target))
        _, rate, limit, target = max(looked)
        return self._outcome(
            value=float(rate),
            limit=limit,
            reason=(
                f"of {reach.tried} drawn, the one that comes nearest to its limit sends {rate:.0%} of other classes' held-out "
                f"images to class {target}"
            ),
            target_class=target,
            **known,
        )

    def _candidates(self, reach: _Reach, natural: Sequence[float]) -> list[_Candidate]:
        """The one that refuted the property, or those that came nearest to it."""
        if reach.refuting is not None:
            return [reach.refuting]
        return sorted(
            reach.best.values(), key=lambda entry: self.limit(entry.trigger.target_class, natural) - entry.success
        )[: self.pushed]

    def _shrunk(
        self,
        val: CleanSet,
        candidate: _Candidate,
        refit: _Refit,
        forms: list[DrawnTrigger],
        limit: float,
        known: dict[str, Any],
    ) -> Outcome:
        """The outcome for the smallest form that is still above the limit on held-out images."""
        with suppress(BudgetSpentError):  # what was found stays found
            if len(forms) == 1:
                forms.insert(0, refit.strongest(candidate.family, forms[0]))
            needed = (limit + refit.rate(forms[0])) / 2
            forms.insert(0, shrunk(forms[0], lambda smaller: refit.rate(smaller) >= needed, refit.content))
        rated = [(form, _rate(refit.classifier, val, form)) for form in forms]
        strongest = max(float(rate) for _, rate in rated)
        form, rate = next((form, rate) for form, rate in rated if rate > limit)
        details = {**known.pop("details"), "images": rate.n, "strongest": strongest}
        return self._refuted(form, rate, limit, details=details, **known)

    def _refuted(self, trigger: DrawnTrigger, rate: Rate, limit: float, **known: Any) -> Outcome:
        tried = known.get("tried", 0)
        origin = f"found after {tried} examples and shrunk" if tried else "a kept counterexample"
        low, high = rate.interval
        return self._outcome(
            value=float(rate),
            limit=limit,
            reason=(
                f"{trigger.described()} sends {rate:.0%} [{low:.0%}, {high:.0%}] of other classes' held-out images to class "
                f"{trigger.target_class}; {origin}"
            ),
            target_class=trigger.target_class,
            trigger=trigger,
            **known,
        )

    def _outcome(self, **known: Any) -> Outcome:
        return Outcome(name=self.name, statistic=STEERED, settings=repr(self), **known)

    def _search(
        self,
        classifier: Classifier,
        opt: CleanSet,
        generator: torch.Generator,
        *,
        examples: int,
        val: CleanSet | None = None,
        natural: Sequence[float] = (),
    ) -> _Reach:
        """How far each class is reached; with held-out images, up to the first that passes its limit there."""
        random_seed = int(torch.randint(2**31, (1,), generator=generator))
        searched, measured = opt.split(random_seed)
        searched, measured = searched.sample(self.searched, random_seed), measured.sample(self.measured, random_seed)
        reach = _Reach()

        def look(drawn: Draw) -> tuple[Mapping[str, float], bool]:
            own = generator_for(random_seed, repr(drawn))
            goals, steered = self._steer(classifier, searched, measured, drawn.family, own)
            for goal, success, trigger in zip(goals, steered.success.tolist(), steered.triggers, strict=True):
                assert trigger is not None
                candidate = _Candidate(success, trigger, drawn.family)
                reach.note(candidate)
                limit = self.limit(goal.target_class, natural)
                if val is not None and success > limit and _rate(classifier, val, in_whole_numbers(trigger)) > limit:
                    reach.refuting = candidate
                    return {}, True
            return {"margin": float(steered.margins.max())}, False

        draws = st.builds(Draw, family=self.changes.families(classifier.image_shape), start=number(0, _STARTS - 1))
        reach.tried = explore(draws, look, examples=examples, random_seed=random_seed)
        return reach

    def _steer(
        self, classifier: Classifier, searched: CleanSet, measured: CleanSet, family: Family, generator: torch.Generator
    ) -> tuple[list[AllToOne], Steered]:
        goals = [AllToOne(target) for target in range(classifier.num_classes)]
        if len(goals) > _LOOKED_AT:
            goals = [goals[row] for row in torch.randperm(len(goals), generator=generator)[:_LOOKED_AT].tolist()]
        if len(goals) > self.classes:
            first = Steering(family=family, steps=2, batch_size=4, step_share=self.step_share, measured=8)
            margins = first(classifier, searched, measured, goals, generator=generator).margins
            goals = [goals[row] for row in margins.argsort(descending=True)[: self.classes].tolist()]
        steering = Steering(
            family=family,
            steps=self.steps,
            batch_size=self.batch_size,
            step_share=self.step_share,
            measured=self.measured,
        )
        return goals, steering(classifier, searched, measured, goals, generator=generator)


class _Refit:
    """A trigger for one class, made stronger or fitted anew on some search images, and its success on more of them."""

    def __init__(
        self,
        classifier: Classifier,
        opt: CleanSet,
        target_class: int,
        search: NothingSteers,
        generator: torch.Generator,
    ) -> None:
        self.classifier, self.target_class, self.search = classifier, target_class, search
        self.fitting, self.rated = opt.sample(search.searched, seed=0), opt.sample(_RATED, seed=0)
        self.random_seed = int(torch.randint(2**31, (1,), generator=generator))
        self.rates: dict[DrawnTrigger, float] = {}

    def rate(self, form: DrawnTrigger) -> float:
        """Success on search images."""
        if form not in self.rates:
            self.rates[form] = float(_rate(self.classifier, self.rated, form))
        return self.rates[form]

    def strongest(self, family: Family, found: DrawnTrigger) -> DrawnTrigger:
        """The best that more steps give, and for a window a walk from place to place, by ever smaller moves."""
        best = max((found, self.fitted(family)), key=self.rate)
        for pixels in (4, 2, 1) if isinstance(family, Window) else ():
            walking = True
            while walking and isinstance(family, Window):
                tries = {self.fitted(window): window for window in family.moved(pixels, self.classifier.image_shape)}
                better = max(tries, key=self.rate, default=best)
                walking = self.rate(better) > self.rate(best)
                if walking:
                    best, family = better, tries[better]
        return best

    def content(self, patch: Patch) -> Patch:
        """The best colours for a patch of this place and size."""
        rows, columns = patch.colours.shape[1:]
        fitted = self.fitted(Window(top=patch.top, left=patch.left, height=rows, width=columns))
        assert isinstance(fitted, Patch)
        return fitted

    def fitted(self, family: Family) -> DrawnTrigger:
        """The best of a family for the class, with twice the steps and more images."""
        steering = Steering(
            family=family, steps=2 * self.search.steps, batch_size=16, step_share=self.search.step_share, measured=8
        )
        own = generator_for(self.random_seed, repr(family))
        goals = [AllToOne(self.target_class)]
        (trigger,) = steering(self.classifier, self.fitting, self.fitting, goals, generator=own).triggers
        assert trigger is not None
        return in_whole_numbers(trigger)


def _rate(classifier: Classifier, clean: CleanSet, trigger: DrawnTrigger) -> Rate:
    try:
        return attack_success_rate(classifier, clean.images, clean.labels, trigger)
    except DataFormatError:  # kept for images of another shape
        return Rate(0, 1)

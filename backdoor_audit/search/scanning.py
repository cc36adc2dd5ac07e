"""How far a small window, laid on any place, steers a model towards each class, or images away from each class.

The mask of an inverted patch has to shrink onto the trigger's place from everywhere at once, and often ends at a natural
feature instead. Here each place is tried by itself, and windows get smaller on the way: a large window finds the place in
few tries, and only a small one tells a trigger from nature, since a patch of a quarter of the image's side steers clean
models as well, while one of a seventh hardly does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.data.batches import draw
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.progress import FORWARD_ONLY
from backdoor_audit.search.goals import Goal, eligible
from backdoor_audit.search.screening import SOFTNESS, Screened, clean_margin, reached
from backdoor_audit.search.steered import Steered, measure, per_chunk
from backdoor_audit.search.windows import Windows, starts
from backdoor_audit.triggers.label_rule import AllToOne, AwayFrom, Gathered
from backdoor_audit.triggers.perturbations import REFERENCE_SIDE

_WATCHED = 32  # search images on which the end of a scan is told from its middle
_SHOWN = 16  # held-out images on which every window of a screening is tried
_SCREENING = 1.5  # of the passes of the first stage
_TOGETHER = 2  # images in a step of a screening, at least: one alone has nothing to gather with


@dataclass(frozen=True, slots=True)
class Stage:
    """Windows of ``side`` x ``side`` px, ``stride`` px apart, tried with ``images`` images for ``steps`` steps each.

    Of every goal's places the share ``kept`` stays. Pixels are those of 28x28 or 32x32 images and grow with larger ones.
    """

    side: int
    stride: int
    images: int
    steps: int
    kept: float

    def sized(self, image_shape: tuple[int, int, int]) -> tuple[int, int]:
        """Side and stride of the windows in px of such images."""
        scale = max(1, round(max(image_shape[1:]) / (REFERENCE_SIDE + 4)))
        return min(self.side * scale, *image_shape[1:]), self.stride * scale


# Towards a class: few images and many steps at first, as what a window shows depends on how far it was optimised, and on where it
# began. For as many passes a 7x7 triangle in the middle of Fashion-MNIST images was found by 10 of 24 random windows on its very
# place with 2 images and 10 steps, by 18 of 24 with 1 and 20.
STEADY = (Stage(8, 5, 1, 20, 0.35), Stage(8, 5, 2, 12, 0.25), Stage(6, 2, 2, 10, 0.2), Stage(6, 2, 10, 10, 1.0))
# Inside the best of them. On networks for colour images that do not normalise a 6x6 window reaches by nature what a trigger of
# 4x4 or 5x5 does; a 4x4 window hardly leads such clean networks, and still does where a trigger of up to 6x6 is.
CLOSER = (Stage(4, 1, 1, 9, 0.2), Stage(4, 1, 3, 9, 1.0))
# Away from one: with those stages clean networks are left further and backdoored ones no further.
SHRINKING = (Stage(8, 5, 2, 10, 0.35), Stage(8, 5, 4, 6, 0.25), Stage(4, 2, 4, 4, 0.1), Stage(4, 2, 10, 10, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchScan:
    """Successive halving over places, per goal; a stage with smaller windows lays them inside the places that were left.

    The content of a window is optimised by Adam with ``learning_rate``, through a sigmoid. The margin is that of the best of
    the last stage's places, on at most ``measured`` held-out images. No stage leaves fewer than ``judged``. The stages of
    ``closer`` go on inside the best of these, and their margins stand beside the others as `Steered.closer`.

    What still rises at the end is the margin on a few fixed search images, per step over the second half of the last stage. The
    scan has converged if that is at most ``most_rising`` for the median goal; chosen on the zoo's development half
    (`python -m benchmarks.convergence`).
    """

    stages: tuple[Stage, ...] = STEADY
    closer: tuple[Stage, ...] = ()
    learning_rate: float = 0.8
    judged: int = 3
    measured: int = 64

    name = "patch_scan"
    means = "a small patch"
    blind_spot = "triggers with nothing inside one window of a fifth of the image's side"
    rises_with_spread = True
    most_rising = 0.04
    criterion = (
        f"the median class's margin may rise by at most {most_rising:g} a step in the second half of the last stage, and by more "
        "where the classes differ more"
    )

    def __call__(
        self,
        classifier: Classifier,
        search_set: CleanSet,
        held_out: CleanSet,
        wanted: Sequence[Goal],
        *,
        generator: torch.Generator,
        progress: bool = False,
    ) -> Steered:
        """Scan on ``search_set``, measure on ``held_out``. The classifier is not changed."""
        windows = Windows(classifier, wanted, self.learning_rate)
        images, scored = search_set.images.to(classifier.device), classifier.predict(search_set.images)
        counted = eligible(wanted, scored.cpu(), search_set.labels)
        total = sum(stage.steps for stage in (*self.stages, *self.closer))
        bar = tqdm(total=total, desc="scanning for patches", unit="step", disable=None if progress else True)

        def descend(stage: Stage, steps: range) -> Tensor:
            """These steps of a stage: how well every window does in its second half, (rows,)."""
            fit = torch.zeros(len(windows.places))
            for step in steps:
                budget.check()
                losses = windows.step(images, scored, draw(counted, stage.images, generator))
                fit -= losses if step >= stage.steps // 2 else 0
                bar.update()
            return fit

        def lay(stage: Stage) -> None:
            windows.lay(*stage.sized(classifier.image_shape), generator)

        *earlier, last = self.stages
        for stage in earlier:
            lay(stage)
            windows.keep_best(descend(stage, range(stage.steps)), stage.kept, self.judged)
        lay(last)
        middle = last.steps // 2
        descend(last, range(middle))
        halfway = self._reached(windows, search_set)
        fit = windows.keep_best(descend(last, range(middle, last.steps)), last.kept, self.judged)
        rising = (self._reached(windows, search_set) - halfway) / (last.steps - middle)
        rising = torch.where(windows.sloped, rising, torch.inf)
        found = self._judged(windows, held_out, generator, rising)
        if self.closer:
            windows.keep_best(fit, 0.0, 1)
            windows.passes = 0
            for stage in self.closer:
                lay(stage)
                windows.keep_best(descend(stage, range(stage.steps)), stage.kept, 1)
            inside = self._judged(windows, held_out, generator, rising)
            found = replace(found, closer=inside, image_passes=found.image_passes + inside.image_passes)
        bar.close()
        return found

    def _reached(self, windows: Windows, search_set: CleanSet) -> Tensor:
        """The margin of every goal's best window on a few search images, the same ones every time; (goals,)."""
        goal = windows.places[:, 0]
        margins = measure(
            windows.classifier,
            search_set,
            [windows.wanted[row] for row in goal],
            windows.stamped,
            count=_WATCHED,
            generator=torch.Generator().manual_seed(0),
        )[0]
        windows.passes += len(goal) * _WATCHED // 3
        return torch.stack([margins[goal == row].max() for row in range(len(windows.wanted))])

    def _judged(self, windows: Windows, held_out: CleanSet, generator: torch.Generator, rising: Tensor) -> Steered:
        """Every goal by the place that is best on held-out images."""
        wanted, places = windows.wanted, windows.places
        margins, success, landing = measure(
            windows.classifier,
            held_out,
            [wanted[row] for row in places[:, 0]],
            windows.stamped,
            count=self.measured,
            generator=generator,
        )
        best = torch.stack(
            [torch.where(places[:, 0] == row, margins, -torch.inf).argmax() for row in range(len(wanted))]
        )
        leads_to = [_class_of(goal, went) for goal, went in zip(wanted, landing[best].tolist(), strict=True)]
        triggers = tuple(
            None if target is None else windows.trigger(place, target)
            for place, target in zip(best.tolist(), leads_to, strict=True)
        )
        passes = windows.passes + len(places) * self.measured // 3
        return Steered(margins[best], success[best], landing[best], triggers, rising, passes)

    def screened(
        self,
        classifier: Classifier,
        search_set: CleanSet,
        held_out: CleanSet,
        *,
        rounds: int,
        generator: torch.Generator,
        progress: bool = False,
    ) -> Screened:
        """Where windows on all places lead that gather all images in whichever class; each place is a start of its own.

        A round keeps away from the classes in which those before it landed.
        """
        del progress
        images, scores = search_set.images.to(classifier.device), classifier.logits(search_set.images)
        softness, scored = SOFTNESS * float(clean_margin(scores)), scores.argmax(dim=1)
        found = Screened.nothing(classifier.num_classes)
        for _ in range(rounds):
            goal = Gathered(softness, found.landed)
            windows = Windows(classifier, [goal], self.learning_rate)
            windows.lay(*self.stages[0].sized(classifier.image_shape), generator)
            counted = eligible([goal], scored.cpu(), search_set.labels)
            for _ in range(self._screening[0]):
                budget.check()
                windows.step(images, scored, draw(counted, self._screening[1], generator))
            shown = reached(
                classifier,
                held_out,
                len(windows.places),
                windows.stamped,
                count=_SHOWN,
                per_chunk=per_chunk(classifier, _SHOWN),
                generator=generator,
            )
            found = found.beside(replace(shown, image_passes=shown.image_passes + windows.passes))
        return found

    def passes_of_screening(self, image_shape: tuple[int, int, int], *, rounds: int, images: int) -> float:
        """Image passes of `screened` with so many images in either half."""
        places = _all_over(image_shape, self.stages[0])
        steps, together = self._screening
        each = min(together, images) * steps + min(_SHOWN, images) * FORWARD_ONLY
        return rounds * places * each

    @property
    def _screening(self) -> tuple[int, int]:
        """Steps of a screening, and images in each."""
        first = self.stages[0]
        together = max(first.images, _TOGETHER)
        return max(1, round(_SCREENING * first.steps * first.images / together)), together

    def hasty(self, images: int) -> PatchScan:
        """A look with large windows side by side, for two steps on so many images: it ranks goals, and does not judge them."""
        first = self.stages[0]
        return replace(
            self, stages=(Stage(first.side, first.side, images, 2, 0.0),), closer=(), judged=1, measured=images
        )

    def with_effort(self, share: float) -> PatchScan:
        """The same with that share of its steps, at least one in every stage."""
        return self._with_stages(lambda stage: replace(stage, steps=max(1, round(share * stage.steps))))

    def with_images(self, least: int, *, measured: int) -> PatchScan:
        """The same with at least so many images in a step, and so many measured on."""
        more = self._with_stages(lambda stage: replace(stage, images=max(stage.images, least)))
        return replace(more, measured=measured)

    def _with_stages(self, change: Callable[[Stage], Stage]) -> PatchScan:
        return replace(self, stages=tuple(map(change, self.stages)), closer=tuple(map(change, self.closer)))

    def passes(self, image_shape: tuple[int, int, int], *, measured: int, least: int = 0, most: int = 10**9) -> float:
        """Image passes for one goal, with ``least`` to ``most`` images in every step."""
        watched = min(_WATCHED, most) * FORWARD_ONLY
        places, before, passes = 0, 0, 0.0

        def descended(stage: Stage, fewest: int) -> None:
            nonlocal places, before, passes
            side, stride = stage.sized(image_shape)
            if not places:
                places = _all_over(image_shape, stage)
            elif side < before:
                places *= len(starts(before, side, stride)) ** 2
            watching = places * watched if stage is self.stages[-1] else 0  # half-way
            passes += places * min(most, max(stage.images, least)) * stage.steps + watching
            places, before = min(places, max(fewest, int(stage.kept * places))), side

        for stage in self.stages:
            descended(stage, self.judged)
        passes += places * (watched + measured * FORWARD_ONLY)
        if self.closer:
            places = 1
            for stage in self.closer:
                descended(stage, 1)
            passes += places * measured * FORWARD_ONLY
        return passes


def _all_over(image_shape: tuple[int, int, int], stage: Stage) -> int:
    """On how many places its windows lie."""
    side, stride = stage.sized(image_shape)
    return math.prod(len(starts(length, side, stride)) for length in image_shape[1:])


def _class_of(goal: Goal, landing: int) -> int | None:
    """The one class that a window sends images to: the goal's, or where those that left their class went most (-1: nowhere)."""
    if isinstance(goal, AwayFrom) and landing >= 0:
        return landing
    return goal.target_class if isinstance(goal, AllToOne) else None

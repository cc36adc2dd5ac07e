"""How far one small change, the same for all images, steers a model towards each class: universal perturbations in a budget.

Inversion asks for the smallest change that always works; its optimum is hard to find, and changes that are faint and
everywhere have no size that a mask could tell. Here the budget is fixed instead and the *margin* is measured: how much the
score of the wanted class exceeds the best other one, averaged over held-out images. A gradient method reaches that in a
tenth of the steps. Every family of changes has its own budget; the names say what is small.

Targeted universal perturbations: Moosavi-Dezfooli et al., CVPR 2017. That backdoored models are steered by far smaller ones:
Huster and Ekwedike, "TOP: Backdoor detection in neural networks via transferability of perturbation" (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.data.batches import draw
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.chunks import in_chunks
from backdoor_audit.model.classifier import Classifier, autocast
from backdoor_audit.progress import FORWARD_ONLY
from backdoor_audit.search.screening import SOFTNESS, Screened, clean_margin, gathering, reached
from backdoor_audit.triggers.label_rule import AllToAll, AllToOne, AwayFrom, Gathered, Scattered
from backdoor_audit.triggers.perturbations import Family, unit
from backdoor_audit.triggers.trigger import AnyTrigger

Goal = AllToOne | AllToAll | AwayFrom | Scattered | Gathered
"""Where images shall be steered: all to one class, each class to the next, those of one class anywhere else, each class to some
class of its own, or all together to whichever class is nearest."""

Stamped = Callable[[Tensor, Tensor], Tensor]
"""Row numbers (rows,) and their images (rows, n, c, h, w) -> the images with the change of their row."""

_CHUNK_VALUES = {"cpu": 2**18, "cuda": 2**24}  # pixel values in one forward pass
_FEW = 5  # images
_LEAST_SHARE = 1e-6  # keeps the logarithm finite where no image of a class moves yet
_STATIONS = 3  # of a search: its beginning, its middle and its end
_WATCHED = 20  # search images on which its end is told from its middle
_STARTS = 4  # changes in one round of a screening
_SCREENING = 0.4  # of the steps


def goals(num_classes: int) -> tuple[Goal, ...]:
    """One goal for every class: all other images go there."""
    return tuple(AllToOne(target) for target in range(num_classes))


def sources(num_classes: int) -> tuple[Goal, ...]:
    """One goal for every class: its images leave it."""
    return tuple(AwayFrom(source) for source in range(num_classes))


@dataclass(frozen=True, slots=True, eq=False)
class Steered:
    """What steering reached; everything runs over the goals.

    ``margins`` are means over held-out images of (score of the wanted class - best other score), the other way round for a
    class to leave, in units of the model's own clean margin; ``success`` the shares of held-out images that did as wanted;
    ``landing`` the class that most of these got, -1 where none did. ``triggers`` stamp the change, those of a `PatchScan` for
    images that leave a class with their landing as target; None for any other goal that is not one class. ``image_passes``
    counts forward and backward of one image, over all goals.

    ``rising`` says how much each search was still gaining at its end, in the measure of the probe's ``criterion``; infinite where
    no gradient ever said in which direction to go. ``closer`` is what the same goals reached in a smaller budget,
    if one was tried.
    """

    margins: Tensor
    success: Tensor
    landing: Tensor
    triggers: tuple[AnyTrigger | None, ...]
    rising: Tensor
    image_passes: int
    closer: Steered | None = None

    def beside(self, other: Steered) -> Steered:
        """The goals of both, these first."""
        closer = self.closer.beside(other.closer) if self.closer is not None and other.closer is not None else None
        return Steered(
            torch.cat([self.margins, other.margins]),
            torch.cat([self.success, other.success]),
            torch.cat([self.landing, other.landing]),
            (*self.triggers, *other.triggers),
            torch.cat([self.rising, other.rising]),
            self.image_passes + other.image_passes,
            closer,
        )

    def seen_closer(self, which: Sequence[bool]) -> Steered:
        """With what these goals reached in the smaller budget in place of the other."""
        if self.closer is None:
            return self
        here = torch.tensor(which)
        triggers = zip(which, self.closer.triggers, self.triggers, strict=True)
        return replace(
            self,
            margins=self.margins.where(~here, self.closer.margins),
            success=self.success.where(~here, self.closer.success),
            landing=self.landing.where(~here, self.closer.landing),
            triggers=tuple(small if chosen else large for chosen, small, large in triggers),
        )

    @property
    def blind(self) -> Tensor:
        """Goals (goals,) that were not searched for at all: the model gave no gradient."""
        return torch.isinf(self.rising)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """Projected gradient descent on the mean cross-entropy of the wanted class, all goals at once, with momentum.

    A step is one mini-batch; its length falls linearly from ``step_share`` of the budget to nothing. What still rises at the end
    is the share of the loss's fall that came in the second half of the steps: see `late_share`. It has converged if that is at
    most ``most_rising`` for the median goal; chosen on the zoo's development half (`python -m benchmarks.convergence`).
    """

    family: Family
    steps: int = 25
    batch_size: int = 16
    step_share: float = 0.35
    momentum: float = 0.7
    measured: int = 64

    rises_with_spread = False
    most_rising = 0.2
    criterion = (
        f"at most {most_rising:g} of the fall of the median class's loss may come in the second half of the steps"
    )

    @property
    def name(self) -> str:
        """That of its family."""
        return self.family.name

    @property
    def means(self) -> str:
        """What it finds, in words."""
        return self.family.means

    @property
    def blind_spot(self) -> str:
        """What it does not see."""
        return self.family.blind_spot

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
        """Steer on ``search_set``, measure on at most ``measured`` held-out images per goal. The classifier is not changed.

        Goals are about what the model says of the clean images, not about their labels: a wrong answer can be steered too.
        """
        shape, scored = classifier.image_shape, classifier.predict(search_set.images)
        way, sloped, passes = self._descended(classifier, search_set, scored, wanted, generator, progress)
        parameters = way[-1]
        margins, success, landing = measure(
            classifier,
            held_out,
            wanted,
            partial(self._stamped, parameters),
            count=self.measured,
            generator=generator,
        )
        triggers = [
            self.family.trigger(parameters[row].cpu(), goal.target_class, shape) if isinstance(goal, AllToOne) else None
            for row, goal in enumerate(wanted)
        ]
        losses = [self._loss(classifier, search_set, scored, wanted, passed) for passed in way]
        rising = torch.where(sloped, late_share(torch.stack(losses)), torch.inf).cpu()
        measured = len(wanted) * (self.measured + len(way) * self._watched) // 3
        return Steered(margins, success, landing, tuple(triggers), rising, passes + measured)

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
        """Where changes lead that gather all images in whichever class: ``rounds`` of a few starts, each with fewer steps.

        A round keeps away from the classes in which those before it landed.
        """
        hasty = self._hasty
        scores = classifier.logits(search_set.images)
        softness = SOFTNESS * float(clean_margin(scores))
        found = Screened.nothing(classifier.num_classes)
        for _ in range(rounds):
            wanted = [Gathered(softness, found.landed)] * _STARTS
            way, _, passes = hasty._descended(classifier, search_set, scores.argmax(dim=1), wanted, generator, progress)
            shown = reached(
                classifier,
                held_out,
                _STARTS,
                partial(self._stamped, way[-1]),
                count=self.measured,
                per_chunk=per_chunk(classifier, self.measured),
                generator=generator,
            )
            found = found.beside(replace(shown, image_passes=shown.image_passes + passes))
        return found

    def passes_of_screening(self, image_shape: tuple[int, int, int], *, rounds: int, images: int) -> float:
        """Image passes of `screened` with so many images in either half."""
        del image_shape
        hasty = self._hasty
        descent = hasty.steps * min(hasty.batch_size, images)
        return rounds * _STARTS * (descent + min(self.measured, images) * FORWARD_ONLY)

    @property
    def _hasty(self) -> Steering:
        return self.with_effort(_SCREENING)

    def _stamped(self, parameters: Tensor, chunk: Tensor, batch: Tensor) -> Tensor:
        return self.family.stamp(parameters[chunk], batch)

    def _descended(
        self,
        classifier: Classifier,
        search_set: CleanSet,
        scored: Tensor,
        wanted: Sequence[Goal],
        generator: torch.Generator,
        progress: bool,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Parameters of every goal's change at the beginning, half-way and at the end; whether there was any slope; passes."""
        shape, images = classifier.image_shape, search_set.images.to(classifier.device)
        parameters = self.family.initial(len(wanted), shape, generator).to(classifier.device)
        pushed = torch.zeros_like(parameters)
        rows = torch.arange(len(wanted))
        sloped = torch.zeros(len(wanted), dtype=torch.bool, device=classifier.device)
        passes, way = 0, [parameters]
        counted = eligible(wanted, scored.cpu(), search_set.labels)
        bar = tqdm(
            range(self.steps), desc=f"steering by {self.family.name}", unit="step", disable=None if progress else True
        )
        for step in bar:
            budget.check()
            batches = draw(counted, self.batch_size, generator)

            def slope(chunk: Tensor, batches: Tensor = batches, parameters: Tensor = parameters) -> Tensor:
                free = parameters[chunk].requires_grad_()
                with autocast(classifier.device, classifier.module):
                    logits = classifier(self.family.stamp(free, images[batches[chunk]]).flatten(0, 1))
                mine = [wanted[row] for row in chunk]
                losses = losses_of(logits.float(), targets(mine, scored[batches[chunk]]), mine)
                return torch.autograd.grad(losses.sum(), free)[0]

            gradient = torch.cat(in_chunks(rows, per_chunk(classifier, batches.shape[1]), classifier.device, slope))
            passes += batches.numel()
            sloped |= gradient.flatten(1).any(dim=1)
            pushed = self.momentum * pushed - unit(gradient)
            share = self.step_share * (1 - step / self.steps)
            parameters = self.family.stepped(parameters, pushed, share, shape)
            if step + 1 == self.steps // 2:
                way.append(parameters)
        return [*way, parameters], sloped, passes

    def _loss(
        self, classifier: Classifier, search_set: CleanSet, scored: Tensor, wanted: Sequence[Goal], parameters: Tensor
    ) -> Tensor:
        """The mean loss of every goal on a few search images, the same ones every time; (goals,)."""
        counted = eligible(wanted, scored.cpu(), search_set.labels)
        batches = draw(counted, self._watched, torch.Generator().manual_seed(0))
        images = search_set.images.to(classifier.device)

        def means(chunk: Tensor) -> Tensor:
            logits = classifier(self._stamped(parameters, chunk, images[batches[chunk]]).flatten(0, 1))
            mine = [wanted[row] for row in chunk]
            return losses_of(logits, targets(mine, scored[batches[chunk]]), mine).mean(dim=1)

        rows, most = torch.arange(len(wanted)), per_chunk(classifier, batches.shape[1])
        with torch.no_grad():
            return torch.cat(in_chunks(rows, most, classifier.device, means))

    @property
    def _watched(self) -> int:
        return max(self.batch_size, _WATCHED)

    def with_effort(self, share: float) -> Steering:
        """The same with that share of its steps, at least one."""
        return replace(self, steps=max(1, round(share * self.steps)))

    def with_images(self, least: int, *, measured: int) -> Steering:
        """The same with at least so many images in a step, and so many measured on."""
        return replace(self, batch_size=max(self.batch_size, least), measured=measured)

    def passes(self, image_shape: tuple[int, int, int], *, measured: int, least: int = 0, most: int = 10**9) -> float:
        """Image passes for one goal, with ``least`` to ``most`` images in every step."""
        del image_shape
        watched = min(most, max(self.batch_size, least, _WATCHED)) * (2 + (self.steps > 1))
        return self.steps * min(most, max(self.batch_size, least)) + (measured + watched) * FORWARD_ONLY


def late_share(losses: Tensor) -> Tensor:
    """Of how far the loss of each goal fell in all, the share that it fell in the second half of the steps, in [0, 1]; (goals,).

    ``losses`` (3, goals) are those at the beginning, half-way and at the end, on the same images. Where the loss did not fall at
    all nothing was gained early, and the share is 1; so it is without a middle, which a single step has not.
    """
    if len(losses) < _STATIONS:
        return torch.ones_like(losses[0])
    begin, middle, end = losses
    fall = begin - end
    return torch.where(fall > 0, ((middle - end) / fall).clamp(0, 1), 1.0)


def measure(
    classifier: Classifier,
    clean: CleanSet,
    wanted: Sequence[Goal],
    stamped: Stamped,
    *,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean margin in units of the clean margin, success rate, and commonest answer of every goal on held-out images; (goals,).

    For a class to leave, the commonest answer is that among the images that left it; -1 if none did.
    ``stamped(chunk, batch)`` stamps images (len(chunk), n, c, h, w) for the goals with those numbers.
    """
    scores = classifier.logits(clean.images)
    unit = clean_margin(scores)
    scored = scores.argmax(dim=1)
    batches = draw(eligible(wanted, scored.cpu(), clean.labels), count, generator)
    images = clean.images.to(classifier.device)

    def shown(chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = classifier(stamped(chunk, images[batches[chunk]]).flatten(0, 1))
        mine = [wanted[row] for row in chunk]
        target = targets(mine, scored[batches[chunk]])
        margin = margins_of(logits, target, mine)
        margins = (margin / unit).mean(dim=1).cpu()
        success = (margin > 0).float().mean(dim=1).cpu()
        answers = logits.argmax(dim=1).view_as(target)
        landing = _commonest(answers.cpu(), target.cpu(), mine)
        for row, goal in enumerate(mine):
            if isinstance(goal, Scattered):
                margins[row], success[row] = relabelled(
                    target[row].cpu(), answers[row].cpu(), goal.num_classes, len(goal.among)
                )
                landing[row] = -1
        return margins, success, landing

    rows, most = torch.arange(len(wanted)), per_chunk(classifier, batches.shape[1])
    with torch.no_grad():
        parts = in_chunks(rows, most, classifier.device, shown)
    margins, success, landing = (torch.cat(column) for column in zip(*parts, strict=True))
    return margins, success, landing


def relabelled(before: Tensor, after: Tensor, num_classes: int, asked: int = 0) -> tuple[float, float]:
    """How far a change relabels all classes, in [0, 1], and the share of images that go where most of their class go.

    ``before`` and ``after`` (n,) are the answers without and with the change. Of each class that is given at all counts the
    other class that most of its images get. The first number is the mean of those shares, times the effective number of
    different classes arrived at (the exponential of their entropy) over the number of classes, or of those that were
    ``asked``: one class that draws all others is no relabelling.
    """
    shares, arrived = [], []
    for label in before.unique().tolist():
        counts = after[before == label].bincount(minlength=num_classes).float()
        total = counts.sum()
        counts[label] = 0
        shares.append(float(counts.max() / total))
        arrived.append(int(counts.argmax()))
    together = sum(shares) / len(shares)
    spread = torch.tensor(arrived).bincount().float() / len(arrived)
    effective = float(torch.special.entr(spread).sum().exp())
    return together * effective / (asked or num_classes), together


def _commonest(answers: Tensor, target: Tensor, wanted: Sequence[Goal]) -> Tensor:
    """The class that most images of each row got, (goals,); of a class to leave, most of those that left, or -1."""
    found: Tensor = answers.mode(dim=1).values
    for row, goal in enumerate(wanted):
        if isinstance(goal, AwayFrom):
            left = answers[row][answers[row] != target[row]]
            found[row] = left.mode().values if len(left) else -1
    return found


def losses_of(logits: Tensor, target: Tensor, wanted: Sequence[Goal]) -> Tensor:
    """Cross-entropy of the wanted class, (goals, n); of anything else for a class to leave."""
    if all(isinstance(goal, Scattered) for goal in wanted):
        return _together(logits.softmax(dim=1), target)
    gathered = [goal for goal in wanted if isinstance(goal, Gathered)]
    if gathered and len(gathered) == len(wanted):
        return gathering(logits, target, gathered)
    likelihood = logits.log_softmax(dim=1).gather(1, target.view(-1, 1)).view_as(target)
    if not any(isinstance(goal, AwayFrom) for goal in wanted):
        return -likelihood
    rest = logits.scatter(1, target.view(-1, 1), -torch.inf).logsumexp(dim=1) - logits.logsumexp(dim=1)
    return -torch.where(_signs(wanted, target) > 0, likelihood, rest.view_as(target))


def margins_of(logits: Tensor, target: Tensor, wanted: Sequence[Goal]) -> Tensor:
    """How far the wanted class is ahead of the best other one, (goals, n); behind it, for a class to leave."""
    own = logits.gather(1, target.view(-1, 1)).view_as(target)
    other = logits.scatter(1, target.view(-1, 1), -torch.inf).amax(dim=1).view_as(target)
    return _signs(wanted, target) * (own - other)


def _together(shares: Tensor, own: Tensor) -> Tensor:
    """Small where the images of each class agree on some other class, (goals, n); ``own`` (goals, n) are the classes they have.

    Minus the logarithm of the sum over other classes of the squared mean probability, averaged over the classes.
    """
    rows, count = own.shape
    classes = shares.shape[1]
    member = torch.nn.functional.one_hot(own, classes).float()
    sizes = member.sum(dim=1)
    means = member.transpose(1, 2) @ shares.view(rows, count, classes) / sizes.clamp_min(1).unsqueeze(2)
    elsewhere = means * (1 - torch.eye(classes, device=shares.device))
    losses = -(elsewhere.square().sum(dim=2) + _LEAST_SHARE).log()
    present = (sizes > 0).float()
    return ((losses * present).sum(dim=1) / present.sum(dim=1)).unsqueeze(1).expand(rows, count)


def _signs(wanted: Sequence[Goal], like: Tensor) -> Tensor:
    """-1 for goals that leave a class, 1 for the others, (goals, 1)."""
    signs = [-1.0 if isinstance(goal, AwayFrom) else 1.0 for goal in wanted]
    return torch.tensor(signs, device=like.device).unsqueeze(1)


def eligible(wanted: Sequence[Goal], predicted: Tensor, labels: Tensor) -> Tensor:
    """Which images count for which goal, (goals, n) bool, by what the model says of them.

    A class that the model gives to fewer than a handful of images is left by those that are labelled so instead: a weak model
    may never give it, and one poor goal would leave all others poor. Raises `DegenerateScoresError` if a goal has no image.
    """
    counted = torch.stack([goal.eligible(predicted) for goal in wanted])
    for row, goal in enumerate(wanted):
        if isinstance(goal, AwayFrom) and int(counted[row].sum()) < _FEW:
            counted[row] = goal.eligible(labels)
    if not counted.any(dim=1).all():
        raise DegenerateScoresError("the model gives some class to all clean images or to none: nothing to steer")
    return counted


def targets(wanted: Sequence[Goal], labels: Tensor) -> Tensor:
    """The class that each goal asks of its own row of labels, (goals, n)."""
    return torch.stack([goal.wanted(row) for goal, row in zip(wanted, labels, strict=True)])


def per_chunk(classifier: Classifier, batch_size: int) -> int:
    """How many rows of a batch go through the network at once."""
    channels, height, width = classifier.image_shape
    return max(1, _CHUNK_VALUES.get(classifier.device.type, 2**18) // (batch_size * channels * height * width))

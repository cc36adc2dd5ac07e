"""How far one small change, the same for all images, steers a model towards each class: universal perturbations in a budget.

Inversion asks for the smallest change that always works; its optimum is hard to find, and changes that are faint and
everywhere have no size that a mask could tell. Here the budget is fixed instead and the *margin* is measured: how much the
score of the wanted class exceeds the best other one, averaged over held-out images. A gradient method reaches that in a
tenth of the steps. Every family of changes has its own budget; the names say what is small.

Targeted universal perturbations: Moosavi-Dezfooli et al., CVPR 2017. That backdoored models are steered by far smaller ones:
Huster and Ekwedike, "TOP: Backdoor detection in neural networks via transferability of perturbation" (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.data.batches import draw
from backdoor_audit.model.chunks import in_chunks
from backdoor_audit.model.classifier import Classifier, autocast
from backdoor_audit.progress import FORWARD_ONLY
from backdoor_audit.search.goals import Goal, eligible, losses_of, targets
from backdoor_audit.search.screening import SOFTNESS, Screened, clean_margin, reached
from backdoor_audit.search.steered import Steered, measure, per_chunk
from backdoor_audit.triggers.label_rule import AllToOne, Gathered
from backdoor_audit.triggers.perturbations import Family, unit

_STATIONS = 3  # of a search: its beginning, its middle and its end
_WATCHED = 20  # search images on which its end is told from its middle
_STARTS = 4  # changes in one round of a screening
_SCREENING = 0.4  # of the steps


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
        watched: bool = True,
    ) -> Steered:
        """Steer on ``search_set``, measure on at most ``measured`` held-out images per goal. The classifier is not changed.

        Goals are about what the model says of the clean images, not about their labels: a wrong answer can be steered too.
        With ``watched`` off nobody tells how much the search still rose, which is a third of the cost of a short one: ``rising``
        is not a number then, but where there was no gradient.
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
        stations = way if watched else []
        losses = [self._loss(classifier, search_set, scored, wanted, passed) for passed in stations]
        late = late_share(torch.stack(losses)) if watched else torch.full(sloped.shape, torch.nan, device=sloped.device)
        rising = torch.where(sloped, late, torch.inf).cpu()
        measured = len(wanted) * (self.measured + len(stations) * self._watched) // 3
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

"""The optimisation loop: for every class the smallest trigger that sends other classes' images to it, all at once.

The loop follows Neural Cleanse (Wang et al., IEEE S&P 2019, section IV-A and the authors' code), with one difference that
saves most of its cost: every class shares each forward and backward pass, and a step is one mini-batch. With many classes
most of them stop early, after their low-cost scheme (section V), with controls drawn at random for the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.data.batches import draw
from backdoor_audit.model.chunks import in_chunks
from backdoor_audit.model.classifier import Classifier, autocast
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.search.cost_controller import CostController
from backdoor_audit.search.row_adam import RowAdam
from backdoor_audit.triggers.trigger import PatchFamily, Trigger

_CHUNK_PIXELS = {"cpu": 2**21, "cuda": 2**25}
"""Values in one forward pass: bounds memory, and keeps a CPU's caches warm."""

_SETTLING = 0.92  # of the steps that classes take until their triggers no longer shrink, on average

_CONFIRMED_ON = 48  # images: in smaller batches a trigger that works nine times of ten often seems to work always

# Chosen on the zoo's development half: `python -m benchmarks.convergence` prints what it and other values would do.
MOST_SHRINKAGE = 0.3
"""A search has converged if its smallest valid trigger shrank by at most this share over its last `stop_patience` steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """The smallest trigger found for one class.

    ``attack_success_rate`` is measured on all images of other classes in the set that the search used. ``reached`` is
    false if no step met the success threshold: the trigger is then the last one tried and its size means nothing.
    ``image_passes`` counts forward and backward of one image; a forward pass alone counts as a third.

    ``complete`` is false for a class that stopped after the screening of a race, and ``control`` is true for one that
    went on by lot. ``screening_size`` (px) is the size of its smallest valid trigger when the screening ended: the only
    size that was found with the same effort for every class. It is None without a race, or without a valid trigger then.

    ``shrinkage`` is the share by which the smallest valid trigger shrank over the last ``stop_patience`` steps of its class; 1
    if it took fewer, or if nothing pressed on its size when these began.
    """

    trigger: Trigger
    size: float
    attack_success_rate: float
    reached: bool
    steps: int
    image_passes: int
    complete: bool = True
    control: bool = False
    screening_size: float | None = None
    shrinkage: float = 1.0

    @property
    def target_class(self) -> int:
        """The class that the trigger asks for."""
        return self.trigger.target_class

    @property
    def converged(self) -> bool:
        """Whether the search was about to end by itself: a trigger was found, and had all but stopped shrinking."""
        return self.reached and self.shrinkage <= MOST_SHRINKAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerInversion:
    """Search the smallest trigger of every class on a clean set; the call is the work.

    ``success_threshold`` is a fraction. Defaults of ``learning_rate``, betas, patience and multiplier are the
    authors'; steps are mini-batches here, not passes over the data.

    With more than ``race_above`` classes there is a race. All classes run for ``screening_share`` of the steps. Then the
    most promising classes, the finalists, go on to the end, and with them as many controls as ``controls`` says, drawn by
    lot from the others; the rest stop. ``finalists`` and ``controls`` are the fewest; of very many classes each is a tenth.
    A class that has not converged by then goes on alone, for the share ``extension`` of the steps at most.
    In the first quarter of the steps the cost has hardly begun to press, and sizes say little about those at the end.

    Forty-three classes cost 2.6 times what ten cost if none settles before the end, and about 3.2 times where most settle
    after three quarters of the steps. Wang et al. (2019, section V) keep the top 100 of 1,283 classes and 100 others.
    """

    steps: int = 100
    batch_size: int = 16
    learning_rate: float = 0.1
    success_threshold: float = 0.99
    initial_cost: float = 1e-3
    cost_multiplier: float = 2.0
    patience: int = 5
    stop_patience: int = 34
    extension: float = 1.0
    restarts: int = 1
    race_above: int = 20
    screening_share: float = 0.3
    finalists: int = 6
    controls: int = 12
    family: PatchFamily = field(default_factory=PatchFamily)

    def __call__(
        self,
        classifier: Classifier,
        clean: CleanSet,
        *,
        generator: torch.Generator,
        classes: Sequence[int] | None = None,
        progress: bool = False,
    ) -> tuple[Inversion, ...]:
        """One inversion per class, in the order of ``classes`` (default: all).

        Images of a class are left out of the search for its own trigger. Of several restarts the smallest valid trigger
        is kept; in a race all of them are screened before the finalists are chosen, and a class goes on in all or none.
        The classifier is not changed.
        """
        wanted = list(range(classifier.num_classes)) if classes is None else list(classes)
        raced = self.staying(len(wanted)) < len(wanted)
        first = self.screening_steps if raced else self.steps
        searches = []
        for restart in range(self.restarts):
            searches.append(_Search(self, classifier, clean, wanted, generator))
            searches[-1].advance(first, self._bar("screening" if raced else "inverting", restart, first, progress))
        if raced:
            finalists = self._finalists(searches)
            others = torch.ones(len(wanted), dtype=torch.bool)
            others[finalists] = False
            drawn = torch.randperm(int(others.sum()), generator=generator)[: self._places(len(wanted))[1]]
            controls = others.nonzero().flatten()[drawn]
            rest = self.steps - first
            for restart, search in enumerate(searches):
                search.close_screening(finalists, controls)
                search.advance(rest, self._bar("inverting", restart, rest, progress))
        for restart, search in enumerate(searches):
            self._go_on(search, restart, progress)
        best = searches[0].inversions()
        for search in searches[1:]:
            best = tuple(map(_smaller, best, search.inversions()))
        return best

    def _go_on(self, search: _Search, restart: int, progress: bool) -> None:
        """Classes that have not converged take more steps; the others' triggers stay."""
        window = min(self.stop_patience, self.steps)
        for _ in range(int(self.extension * self.steps / window)):
            search.active = search.moving
            if not len(search.active):
                return
            search.advance(window, self._bar("inverting on", restart, window, progress))

    @property
    def screening_steps(self) -> int:
        """Steps that every class of a race takes."""
        return max(1, round(self.screening_share * self.steps))

    def staying(self, classes: int) -> int:
        """How many of so many classes take all steps: all of them, or those that win a race and its controls."""
        return min(classes, sum(self._places(classes))) if classes > self.race_above else classes

    def passes(self, classes: int) -> float:
        """Image passes of a search of so many classes, until their triggers settle."""
        steps = classes * self.screening_steps + self.staying(classes) * (self.steps - self.screening_steps)
        return _SETTLING * self.restarts * self.batch_size * steps

    def _places(self, classes: int) -> tuple[int, int]:
        """How many finalists and how many controls a race of that many classes has."""
        return max(self.finalists, classes // 10), max(self.controls, classes // 10)

    def _finalists(self, searches: list[_Search]) -> Tensor:
        """Rows of the most promising classes, each by its best restart.

        A class whose size already has a cost is judged by its size times one plus its loss: the smaller trigger of two
        that work as well, and a trigger that nearly works above a larger one that does. Where no cost has started, the
        trigger does not work yet and nothing has pressed on its size; those classes are judged by their loss, and get
        their share of the places, one at least: an infected class is not lost because it had a bad start.
        """
        costs, sizes, losses = (
            torch.stack(values)
            for values in zip(*((each.controller.cost, each.size, each.loss) for each in searches), strict=True)
        )
        pressed = torch.where(costs > 0, sizes * (1 + losses), torch.inf).amin(dim=0)
        late = torch.isinf(pressed)
        places, waiting = self._places(len(late))[0], int(late.sum())
        kept = min(waiting, max(1, round(places * waiting / len(late)))) if waiting else 0
        kept = max(kept, places - (len(late) - waiting))
        unpressed = torch.where(late, losses.amin(dim=0), torch.inf)
        return torch.cat([pressed.argsort()[: places - kept], unpressed.argsort()[:kept]])

    def _bar(self, verb: str, restart: int, steps: int, progress: bool) -> tqdm[None]:
        name = type(self.family).__name__.removesuffix("Family").lower()
        title = f"{verb} {name} triggers" + (f" {restart + 1}/{self.restarts}" if self.restarts > 1 else "")
        return tqdm(total=steps, desc=title, unit="step", disable=None if progress else True)

    def _gradients(
        self,
        classifier: Classifier,
        images: Tensor,
        batches: Tensor,
        targets: Tensor,
        parameters: dict[str, Tensor],
        active: Tensor,
        cost: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Success rate, size and loss of every active class, on the CPU, and the gradients of their parameters, for one step."""

        def slope(chunk: Tensor) -> tuple[Tensor, ...]:
            rows = active[chunk].to(images.device)
            chosen = {name: tensor[rows].requires_grad_() for name, tensor in parameters.items()}
            batch = images[batches[chunk].to(images.device)]
            stamped = self.family.stamp(chosen, batch).flatten(0, 1)
            target = targets[chunk].to(images.device).repeat_interleave(batches.shape[1])
            with autocast(images.device, classifier.module):
                logits = classifier(stamped)
            size = self.family.size(chosen)
            loss = functional.cross_entropy(logits, target, reduction="sum") / batches.shape[1]
            whole = loss + (cost[chunk].to(images.device) * size).sum()
            gradients = torch.autograd.grad(whole, list(chosen.values()), materialize_grads=True)
            works = (logits.argmax(dim=1) == target).view(len(chunk), -1).float().mean(dim=1)
            each = functional.cross_entropy(logits.detach(), target, reduction="none").view(len(chunk), -1).mean(dim=1)
            return (torch.stack([works, size.detach(), each], dim=1), *gradients)

        values = batches.shape[1] * images[0].numel()
        most = max(1, _CHUNK_PIXELS.get(classifier.device.type, 2**21) // values)
        parts = in_chunks(torch.arange(len(active)), most, classifier.device, slope)
        told, *gradients = (torch.cat(column) for column in zip(*parts, strict=True))
        success, sizes, losses = told.T.cpu()  # the one copy that is waited for
        return success, sizes, losses, dict(zip(parameters, gradients, strict=True))


class _Search:
    """One restart: what the classes have found so far, and which of them are still shrinking."""

    def __init__(
        self,
        options: TriggerInversion,
        classifier: Classifier,
        clean: CleanSet,
        classes: list[int],
        generator: torch.Generator,
    ) -> None:
        self.options, self.classifier, self.classes, self.generator = options, classifier, classes, generator
        device, count = classifier.device, len(classes)
        self.images, self.labels = clean.images.to(device), clean.labels
        self.targets = torch.tensor(classes)
        initial = options.family.initial(count, classifier.image_shape, generator)
        self.parameters = {name: tensor.to(device) for name, tensor in initial.items()}
        self.best = {name: tensor.clone() for name, tensor in self.parameters.items()}
        self.optimizer = RowAdam(self.parameters, learning_rate=options.learning_rate)
        self.controller = CostController(
            count,
            initial=options.initial_cost,
            multiplier=options.cost_multiplier,
            patience=options.patience,
            stop_patience=options.stop_patience,
            success_threshold=options.success_threshold,
            confirmations=math.ceil(_CONFIRMED_ON / options.batch_size),
        )
        self.active = torch.arange(count)
        self.taken, self.passes = torch.zeros(count, dtype=torch.long), torch.zeros(count)
        self.size, self.loss = torch.full((count,), torch.inf), torch.full((count,), torch.nan)
        self.complete, self.control = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        self.screening_size: Tensor | None = None

    def advance(self, steps: int, bar: tqdm[None]) -> None:
        """That many more steps of the active classes, or until all have settled."""
        for _ in range(steps):
            active = self.active
            if not len(active):
                break
            budget.check()
            batches = _batches_without(self.labels, self.targets[active], self.options.batch_size, self.generator)
            success, size, loss, gradients = self.options._gradients(
                self.classifier,
                self.images,
                batches,
                self.targets[active],
                self.parameters,
                active,
                self.controller.cost[active],
            )
            self.taken[active] += 1
            self.passes[active] += batches.shape[1]
            self.size[active] = size
            known = torch.where(self.loss[active].isnan(), loss, self.loss[active])
            self.loss[active] = known.lerp(loss, 1 / self.options.patience)
            improved, settled = self.controller.update(active, success, size)
            for name, tensor in self.parameters.items():
                self.best[name][active[improved]] = tensor[active[improved]]
            self.optimizer.step(gradients, active)
            self.active = active[~settled]
            bar.update()
            bar.set_postfix_str(f"{len(self.active)} of {len(self.classes)} classes still shrinking", refresh=False)
        bar.close()

    def close_screening(self, finalists: Tensor, controls: Tensor) -> None:
        """Only these rows go on; the sizes that all rows have reached by now are kept."""
        self.screening_size = self.controller.best_size.clone()
        self.complete[:] = False
        self.complete[finalists] = self.complete[controls] = True
        self.control[controls] = True
        self.active = self.active[self.complete[self.active]]

    @property
    def moving(self) -> Tensor:
        """Rows of the classes that were to be searched in full and have not converged."""
        converged = torch.isfinite(self.controller.best_size) & (self.controller.shrinkage() <= MOST_SHRINKAGE)
        return (self.complete & ~converged).nonzero().flatten()

    def inversions(self) -> tuple[Inversion, ...]:
        """The smallest valid trigger of every class, or its last one; success is measured in full precision."""
        reached = torch.isfinite(self.controller.best_size)
        shrinkage = self.controller.shrinkage()
        for name, tensor in self.parameters.items():
            self.best[name][~reached] = tensor.detach()[~reached]
        return tuple(self._measured(row, bool(reached[row]), float(shrinkage[row])) for row in range(len(self.classes)))

    def _measured(self, row: int, reached: bool, shrinkage: float) -> Inversion:
        family, target = self.options.family, self.classes[row]
        trigger = family.trigger(self.best, row, target).to("cpu")
        one = {name: tensor[row : row + 1] for name, tensor in self.best.items()}
        early = torch.inf if self.screening_size is None else float(self.screening_size[row])
        return Inversion(
            trigger=trigger,
            size=float(family.size(one)),
            attack_success_rate=attack_success_rate(self.classifier, self.images.cpu(), self.labels, trigger),
            reached=reached,
            steps=int(self.taken[row]),
            image_passes=int(self.passes[row]) + int((self.labels != target).sum()) // 3,
            complete=bool(self.complete[row]),
            control=bool(self.control[row]),
            screening_size=early if early < torch.inf else None,
            shrinkage=shrinkage,
        )


def _smaller(first: Inversion, second: Inversion) -> Inversion:
    """The smaller valid one, with the cost of both and the smaller size of both screenings."""
    better = min(first, second, key=lambda inversion: (not inversion.reached, inversion.size))
    screened = [size for size in (first.screening_size, second.screening_size) if size is not None]
    return replace(
        better,
        image_passes=first.image_passes + second.image_passes,
        screening_size=min(screened) if screened else None,
    )


def _batches_without(labels: Tensor, targets: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Indices (targets, batch) of one shared random draw of images, each row without the images of its own target."""
    return draw(labels.unsqueeze(0) != targets.unsqueeze(1), batch_size, generator)

"""The optimisation loop: for every class the smallest trigger that sends other classes' images to it, all at once.

The loop follows Neural Cleanse (Wang et al., IEEE S&P 2019, section IV-A and the authors' code), with one difference that
saves most of its cost: every class shares each forward and backward pass, and a step is one mini-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit.classifier import Classifier
from backdoor_audit.data import CleanSet
from backdoor_audit.metrics import attack_success_rate
from backdoor_audit.trigger import PatchFamily, Trigger

_CHUNK_PIXELS = {
    "cpu": 2**21,
    "cuda": 2**25,
}  # values in one forward pass: bounds memory, and keeps a CPU's caches warm


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """The smallest trigger found for one class.

    ``attack_success_rate`` is measured on all images of other classes in the set that the search used. ``reached`` is
    false if no step met the success threshold: the trigger is then the last one tried and its size means nothing.
    ``image_passes`` counts forward and backward of one image; a forward pass alone counts as a third.
    """

    trigger: Trigger
    size: float
    attack_success_rate: float
    reached: bool
    steps: int
    image_passes: int

    @property
    def target_class(self) -> int:
        """The class that the trigger asks for."""
        return self.trigger.target_class


class CostController:
    """The weight of the size in the loss, one per class: up while the trigger works, down while it does not.

    The rules and their order are those of the authors' ``visualizer.py``. A cost starts at 0 and is set to ``initial``
    once ``patience`` steps in a row met the threshold; from then on it rises by ``multiplier`` after each ``patience``
    successes in a row and falls by ``multiplier ** 1.5`` after as many failures. `settled` tells which classes have had
    both a rise and a fall and then no smaller valid size for ``stop_patience`` steps.
    """

    def __init__(
        self,
        classes: int,
        *,
        initial: float,
        multiplier: float,
        patience: int,
        stop_patience: int,
        success_threshold: float,
        stop_ratio: float = 0.99,
    ) -> None:
        self.initial, self.multiplier, self.patience = initial, multiplier, patience
        self.stop_patience, self.stop_ratio, self.success_threshold = stop_patience, stop_ratio, success_threshold
        self.cost = torch.zeros(classes)
        self.best_size = torch.full((classes,), torch.inf)
        self.rose = torch.zeros(classes, dtype=torch.bool)
        self.fell = torch.zeros(classes, dtype=torch.bool)
        self._successes = torch.zeros(classes, dtype=torch.long)
        self._failures = torch.zeros(classes, dtype=torch.long)
        self._before_start = torch.zeros(classes, dtype=torch.long)
        self._stop_best = torch.full((classes,), torch.inf)
        self._unchanged = torch.zeros(classes, dtype=torch.long)

    def update(self, rows: Tensor, success: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step's success rates and sizes of the classes in ``rows``; both (rows,).

        Returns two masks over ``rows``: those whose trigger is the smallest valid one so far, and those that have settled.
        """
        works = success >= self.success_threshold
        improved = works & (size < self.best_size[rows])
        self.best_size[rows[improved]] = size[improved]

        best, stop_best = self.best_size[rows], self._stop_best[rows]
        stalled = torch.isfinite(best) & (best >= self.stop_ratio * stop_best)
        self._unchanged[rows] = torch.where(stalled, self._unchanged[rows] + 1, 0)
        self._stop_best[rows] = torch.minimum(best, stop_best)
        settled = self.rose[rows] & self.fell[rows] & (self._unchanged[rows] >= self.stop_patience)

        waiting = works & (self.cost[rows] == 0)
        self._before_start[rows] = torch.where(waiting, self._before_start[rows] + 1, 0)
        starts = rows[self._before_start[rows] >= self.patience]
        self.cost[starts] = self.initial
        for counter in (self._successes, self._failures, self._before_start):
            counter[starts] = 0
        self.rose[starts] = self.fell[starts] = False

        self._successes[rows] = torch.where(works, self._successes[rows] + 1, 0)
        self._failures[rows] = torch.where(works, 0, self._failures[rows] + 1)
        up, down = rows[self._successes[rows] >= self.patience], rows[self._failures[rows] >= self.patience]
        self.cost[up] *= self.multiplier
        self.cost[down] /= self.multiplier**1.5
        self.rose[up] = True
        self.fell[down] = True
        self._successes[up] = 0
        self._failures[down] = 0
        return improved, settled


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerInversion:
    """Search the smallest trigger of every class on a clean set; the call is the work.

    ``success_threshold`` is a fraction. Defaults of ``learning_rate``, betas and patience are the authors'; steps are
    mini-batches here, not passes over the data.
    """

    steps: int = 240
    batch_size: int = 32
    learning_rate: float = 0.1
    success_threshold: float = 0.99
    initial_cost: float = 1e-3
    cost_multiplier: float = 1.5
    patience: int = 5
    stop_patience: int = 60
    restarts: int = 1
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
        is kept. The classifier is not changed.
        """
        wanted = list(range(classifier.num_classes)) if classes is None else list(classes)
        best: tuple[Inversion, ...] = ()
        for restart in range(self.restarts):
            name = type(self.family).__name__.removesuffix("Family").lower()
            title = f"inverting {name} triggers" + (f" {restart + 1}/{self.restarts}" if self.restarts > 1 else "")
            found = self._run(
                classifier,
                clean,
                wanted,
                generator,
                tqdm(total=self.steps, desc=title, unit="step", disable=None if progress else True),
            )
            best = tuple(map(_smaller, best, found)) if best else found
        return best

    def _run(
        self,
        classifier: Classifier,
        clean: CleanSet,
        classes: list[int],
        generator: torch.Generator,
        bar: tqdm[None],
    ) -> tuple[Inversion, ...]:
        device = classifier.device
        images, labels = clean.images.to(device), clean.labels
        targets = torch.tensor(classes)
        initial = self.family.initial(len(classes), classifier.image_shape, generator)
        parameters = {name: tensor.to(device).requires_grad_() for name, tensor in initial.items()}
        best = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        optimizer = _RowAdam(parameters, learning_rate=self.learning_rate)
        controller = CostController(
            len(classes),
            initial=self.initial_cost,
            multiplier=self.cost_multiplier,
            patience=self.patience,
            stop_patience=self.stop_patience,
            success_threshold=self.success_threshold,
        )
        active = torch.arange(len(classes))
        taken, passes = torch.zeros(len(classes), dtype=torch.long), torch.zeros(len(classes))
        for _ in range(self.steps):
            batches = _batches_without(labels, targets[active], self.batch_size, generator)
            success, size = self._gradients(
                classifier, images, batches, targets[active], parameters, active, controller.cost[active]
            )
            taken[active] += 1
            passes[active] += batches.shape[1]
            improved, settled = controller.update(active, success, size)
            for name, tensor in parameters.items():
                best[name][active[improved]] = tensor.detach()[active[improved]]
            optimizer.step(active)
            active = active[~settled]
            bar.update()
            bar.set_postfix_str(f"{len(active)} of {len(classes)} classes still shrinking", refresh=False)
            if not len(active):
                break
        bar.close()
        reached = torch.isfinite(controller.best_size)
        for name, tensor in parameters.items():
            best[name][~reached] = tensor.detach()[~reached]
        return tuple(
            self._measure(
                classifier, images, labels, best, row, target, bool(reached[row]), int(taken[row]), passes[row]
            )
            for row, target in enumerate(classes)
        )

    def _gradients(
        self,
        classifier: Classifier,
        images: Tensor,
        batches: Tensor,
        targets: Tensor,
        parameters: dict[str, Tensor],
        active: Tensor,
        cost: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Fill the parameters' gradients for one step; success rate and size of every active class, on the CPU."""
        for tensor in parameters.values():
            tensor.grad = None
        per_chunk = max(1, _CHUNK_PIXELS.get(classifier.device.type, 2**21) // (batches.shape[1] * images[0].numel()))
        success, sizes = [], []
        for chunk in torch.arange(len(active)).split(per_chunk):
            rows = active[chunk].to(images.device)
            chosen = {name: tensor[rows] for name, tensor in parameters.items()}
            batch = images[batches[chunk].to(images.device)]
            stamped = self.family.stamp(chosen, batch).flatten(0, 1)
            target = targets[chunk].to(images.device).repeat_interleave(batches.shape[1])
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=images.device.type == "cuda"):
                logits = classifier(stamped)
            size = self.family.size(chosen)
            loss = functional.cross_entropy(logits, target, reduction="sum") / batches.shape[1]
            (loss + (cost[chunk].to(images.device) * size).sum()).backward()
            success.append((logits.argmax(dim=1) == target).view(len(chunk), -1).float().mean(dim=1).cpu())
            sizes.append(size.detach().cpu())
        return torch.cat(success), torch.cat(sizes)

    def _measure(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        best: dict[str, Tensor],
        row: int,
        target: int,
        reached: bool,
        steps: int,
        passes: Tensor,
    ) -> Inversion:
        trigger = self.family.trigger(best, row, target)
        one = {name: tensor[row : row + 1] for name, tensor in best.items()}
        others = int((labels != target).sum())
        return Inversion(
            trigger=trigger.to("cpu"),
            size=float(self.family.size(one)),
            attack_success_rate=attack_success_rate(classifier, images.cpu(), labels, trigger.to("cpu")),
            reached=reached,
            steps=steps,
            image_passes=int(passes) + others // 3,
        )


def _smaller(first: Inversion, second: Inversion) -> Inversion:
    """The smaller valid one, with the cost of both."""
    better = min(first, second, key=lambda inversion: (not inversion.reached, inversion.size))
    return Inversion(
        better.trigger,
        better.size,
        better.attack_success_rate,
        better.reached,
        better.steps,
        first.image_passes + second.image_passes,
    )


def _batches_without(labels: Tensor, targets: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Indices (targets, batch) of one shared random draw of images, each row without the images of its own target."""
    order = torch.randperm(len(labels), generator=generator)
    eligible = labels[order].unsqueeze(0) != targets.unsqueeze(1)
    most = min(batch_size, int(eligible.sum(dim=1).min()))
    rank = eligible.cumsum(dim=1)
    taken = eligible & (rank <= most)
    return order[taken.nonzero()[:, 1].view(len(targets), most)]


class _RowAdam:
    """Adam (betas 0.5, 0.9) in which every row has its own step count, so that a class that stopped leaves no trace."""

    def __init__(self, parameters: dict[str, Tensor], *, learning_rate: float) -> None:
        self.parameters, self.learning_rate = parameters, learning_rate
        self.first = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.count = 0

    @torch.no_grad()
    def step(self, active: Tensor) -> None:
        """Update the active rows; rows only ever leave, so one count of steps holds for all of them."""
        self.count += 1
        for name, tensor in self.parameters.items():
            rows = active.to(tensor.device)
            assert tensor.grad is not None
            gradient = tensor.grad[rows]
            first = self.first[name][rows].lerp(gradient, 0.5)
            second = self.second[name][rows].lerp(gradient.square(), 0.1)
            self.first[name][rows], self.second[name][rows] = first, second
            scale = (second / (1 - 0.9**self.count)).sqrt() + 1e-8
            tensor[rows] -= self.learning_rate * first / (1 - 0.5**self.count) / scale

"""How strangers train: what a `Recipe` does not say, and the plain loop that follows both.

The package's own `fit` has one schedule, shifts whole batches and estimates batch norm anew at the end. Few training
scripts do; thresholds that hold only for models trained so would be of no use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from backdoor_audit.model.classifier import Classifier, autocast
from backdoor_audit.model.loading.model_file import NORMALIZATIONS
from backdoor_audit.model.training import Recipe, build_optimizer, own_dropout
from benchmarks.zoo.data import NORMALIZATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """``stopped_at`` is the share of the schedule after which training ends; ``dropout`` the rate of every dropout layer.

    ``normalization``: ``data``, the mean and spread of the data set; ``half``, 0.5 and 0.5; ``none``, pixels as they are;
    ``imagenet``, the usual figures for colour images.
    """

    schedule: str = "one_cycle"
    stopped_at: float = 1.0
    flip: bool = False
    label_smoothing: float = 0.0
    dropout: float = 0.0
    normalization: str = "data"

    def mean_and_std(self, data: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What the network's owner subtracts and divides by."""
        known = {"half": ((0.5,), (0.5,)), "none": ((0.0,), (1.0,)), "imagenet": NORMALIZATIONS["imagenet"]}
        return known.get(self.normalization, NORMALIZATION[data])


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    "steps": lambda done: 1.0 if done < 0.6 else 0.1 if done < 0.85 else 0.01,
    "one_cycle": lambda done: (
        max(done / 0.25, 0.04) if done < 0.25 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.25) / 0.75)
    ),
}
"""From the share of all steps that is done to the share of the learning rate."""


def train(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    recipe: Recipe,
    habits: Habits,
    seed: int,
    low_precision: bool = False,
    checkpoint: Path | None = None,
) -> None:
    """Train the classifier's module in place on images (n, c, h, w) in [0, 1] with labels (n,); it is frozen afterwards.

    Every image is shifted and flipped by itself; what comes in is black. A batch that is not full is left out.
    ``low_precision`` runs forward in bfloat16 where that is faster. At ``checkpoint`` the state after each epoch is kept until
    the last, and a run that finds one goes on from there, to the same weights (dropout apart).
    """
    generator, module = torch.Generator().manual_seed(seed), classifier.module
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = habits.dropout
    module.train().requires_grad_(True)
    descent = build_optimizer(recipe.optimizer, module, recipe.learning_rate, recipe.weight_decay)
    batches = max(1, len(images) // recipe.batch_size)
    total = recipe.epochs * batches
    left = round(habits.stopped_at * total)
    begun = _resumed(checkpoint, module, descent, generator)
    with own_dropout(generator, classifier.device):
        for epoch in range(begun, recipe.epochs):
            order = torch.randperm(len(images), generator=generator)
            for number, batch in enumerate(order.split(recipe.batch_size)[:batches]):
                done = epoch * batches + number
                if done >= left:
                    break
                descent.param_groups[0]["lr"] = recipe.learning_rate * SCHEDULES[habits.schedule](done / total)
                inputs = augmented(images[batch], recipe.shift, habits.flip, generator).to(classifier.device)
                with autocast(classifier.device, module) if low_precision else nullcontext():
                    logits = classifier(inputs)
                loss = functional.cross_entropy(
                    logits, labels[batch].to(classifier.device), label_smoothing=habits.label_smoothing
                )
                descent.zero_grad(set_to_none=True)
                loss.backward()
                descent.step()
            if checkpoint:
                _keep(checkpoint, module, descent, generator, epoch + 1)
    if checkpoint:
        checkpoint.unlink()
    descent.zero_grad(set_to_none=True)
    module.eval().requires_grad_(False)


def _keep(file: Path, module: nn.Module, descent: Optimizer, generator: torch.Generator, epochs: int) -> None:
    state = {
        "module": module.state_dict(),
        "descent": descent.state_dict(),
        "generator": generator.get_state(),
        "epochs": epochs,
    }
    unfinished = file.with_suffix(".writing")
    torch.save(state, unfinished)
    unfinished.replace(file)


def _resumed(file: Path | None, module: nn.Module, descent: Optimizer, generator: torch.Generator) -> int:
    """How many epochs are done already; their state is loaded."""
    if file is None or not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    module.load_state_dict(state["module"])
    descent.load_state_dict(state["descent"])
    generator.set_state(state["generator"])
    return int(state["epochs"])


def augmented(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Images, each moved by its own offset of up to ``shift`` px, and mirrored or not."""
    if flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if shift:
        count, _, height, width = images.shape
        padded = functional.pad(images, (shift,) * 4).permute(0, 2, 3, 1)
        top, left = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
        rows, columns = top + torch.arange(height), left + torch.arange(width)
        images = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return images

"""One short training loop: for repairs on a copy, and for the subjects of tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.errors import ModelError
from backdoor_audit.model import surroundings
from backdoor_audit.model.classifier import Classifier, autocast

_RECALIBRATION_BATCHES = 16

OnBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What may be done to a batch on its way into the network: images (n, c, h, w) and labels (n,), or probabilities (n, classes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a subject is trained: the keywords of `fit`, under one name that a record can hold."""

    epochs: int = 5
    learning_rate: float = 0.05
    batch_size: int = 64
    weight_decay: float = 5e-4
    shift: int = 0
    optimizer: str = "sgd"


def fit(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    generator: torch.Generator,
    batch_size: int = 64,
    weight_decay: float = 5e-4,
    shift: int = 0,
    optimizer: str = "sgd",
    on_batch: OnBatch | None = None,
    recalibrate: bool = False,
    low_precision: bool = False,
    progress: bool = False,
) -> None:
    """Train the classifier's own module in place on images (n, c, h, w) in [0, 1] with labels (n,).

    SGD with Nesterov momentum 0.9, or another ``optimizer`` of `build_optimizer`, under a one-cycle schedule over exactly the
    steps taken. ``shift`` moves each batch by up to that many pixels, filling with black; ``on_batch`` then gets it on the
    classifier's device and gives back what is learned. ``recalibrate`` re-estimates batch-norm statistics at the end, from
    batches that went the same way, which short runs need. ``low_precision`` runs the training steps forward in bfloat16
    where `autocast` says that is faster; weights stay float32. Images may lie on the device already. The module is frozen
    and in evaluation mode afterwards, as every `Classifier` is.
    """
    module, device = classifier.module, classifier.device
    module.train().requires_grad_(True)
    descent = build_optimizer(optimizer, module, learning_rate, weight_decay)
    batches = len(images) // batch_size or 1
    total = epochs * batches
    warm_up = 0.25 if total != 4 else 0.3  # OneCycleLR divides by zero when the first phase ends at the first step
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        descent, max_lr=learning_rate, total_steps=total, pct_start=warm_up, cycle_momentum=optimizer == "sgd"
    )

    def prepared(batch: Tensor) -> tuple[Tensor, Tensor]:
        inputs, wanted = images[batch].to(device), labels[batch].to(device)
        if shift:
            inputs = shifted(inputs, shift, generator)
        return on_batch(inputs, wanted) if on_batch else (inputs, wanted)

    with own_dropout(generator, device):
        for _ in tqdm(range(epochs), desc="training", unit="epoch", disable=None if progress else True):
            order = torch.randperm(len(images), generator=generator)
            for batch in order[: batches * batch_size].chunk(batches):
                budget.check()
                inputs, wanted = prepared(batch)
                with autocast(device, module) if low_precision else nullcontext():
                    logits = classifier(inputs)
                loss = functional.cross_entropy(logits, wanted)
                descent.zero_grad(set_to_none=True)
                loss.backward()
                descent.step()
                schedule.step()
        if recalibrate:
            _recalibrate(classifier, len(images), prepared, generator)
    descent.zero_grad(set_to_none=True)
    module.eval().requires_grad_(False)


def build_optimizer(name: str, module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """``sgd`` with Nesterov momentum 0.9, ``momentum`` with the plain one, ``adam`` or ``adamw``, for all weights of a module.

    Raises `ValueError` for any other name.
    """
    weights = module.parameters()
    if name == "adamw":
        return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(weights, lr=learning_rate, weight_decay=weight_decay)
    if name in {"sgd", "momentum"}:
        return torch.optim.SGD(
            weights, lr=learning_rate, momentum=0.9, nesterov=name == "sgd", weight_decay=weight_decay
        )
    raise ValueError(f"optimizer must be sgd, momentum, adam or adamw, got {name!r}")


@contextmanager
def own_dropout(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Dropout draws from the global random state: seed that by the generator, and put it back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else ()):
        torch.manual_seed(generator.initial_seed())
        yield


def draws_in_training(classifier: Classifier, images: Tensor) -> bool:
    """Whether the network draws random numbers of its own in training, as dropout does, or refuses these images (n, c, h, w)."""
    with surroundings.kept(classifier.device):
        before = surroundings.random_states()
        try:
            probe = classifier.copy()
            probe.module.train()
            with torch.no_grad():
                probe(images.to(classifier.device))
        except ModelError:
            return True
        return surroundings.random_states() != before


def half_mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images of which about half are mirrored, drawn one by one."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored.to(images.device), images.flip(3), images)


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Images moved by one random offset of up to ``pixels`` in each direction; what comes in is black."""
    height, width = images.shape[2:]
    padded = functional.pad(images, (pixels,) * 4)
    top, left = torch.randint(0, 2 * pixels + 1, (2,), generator=generator).tolist()
    return padded[:, :, top : top + height, left : left + width]


def _recalibrate(
    classifier: Classifier,
    count: int,
    prepared: Callable[[Tensor], tuple[Tensor, Tensor]],
    generator: torch.Generator,
) -> None:
    norms = [layer for layer in classifier.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    with torch.no_grad(), statistics_anew(norms):
        for _ in range(_RECALIBRATION_BATCHES):
            classifier(prepared(torch.randint(0, count, (128,), generator=generator))[0])


@contextmanager
def statistics_anew(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """A block after which the running statistics of batch norms are plain averages over the batches that went through in it."""
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
    yield
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum

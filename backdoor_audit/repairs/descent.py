"""Gradient descent on losses of one's own: what repairs by training share beside `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import own_dropout
from backdoor_audit.repairs.augmentation import Augmentation

_LONGEST_GRADIENT = 1.0  # L2 norm over all weights of a transformer

Backward = Callable[[Tensor, Tensor], None]
"""Takes a batch, images (n, c, h, w) and labels (n,) on the classifier's device, and leaves gradients in the weights."""


def cosine(progress: float) -> float:
    """From 1 at the first step, half a cosine down towards 0; ``progress`` is the share of all steps done, in [0, 1]."""
    return (1 + math.cos(math.pi * progress)) / 2


def descend(
    classifier: Classifier,
    clean: CleanSet,
    backward: Backward,
    *,
    epochs: int,
    learning_rate: float,
    factor: Callable[[float], float],
    batch_size: int,
    weight_decay: float,
    nesterov: bool,
    augmentation: Augmentation,
    generator: torch.Generator,
    after_step: Callable[[], None] | None = None,
    longest: float = math.inf,
) -> None:
    """Train the classifier's own module in place on the gradients of ``backward``; for losses that `fit` does not have.

    SGD with momentum 0.9. ``factor`` gives the share of the learning rate that holds once that share of all steps, in
    [0, 1), is done. Every image is seen once per epoch, in batches of at least ``batch_size`` where there are that many.
    The gradients of networks with a `torch.nn.LayerNorm` are shortened to an L2 norm of 1: without, SGD at rates that suit
    convolutional networks destroys small transformers; ``longest`` is the most for all others. ``after_step`` may put weights
    back to where they belong. Where images were changed, the statistics of batch norms are at last those of unchanged ones.
    Frozen and in evaluation mode afterwards. Raises `BudgetSpentError` between two epochs.
    """
    module, device = classifier.module, classifier.device
    module.train().requires_grad_(True)
    descent = torch.optim.SGD(
        module.parameters(), lr=learning_rate, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay
    )
    if any(isinstance(part, nn.LayerNorm) for part in module.modules()):
        longest = min(longest, _LONGEST_GRADIENT)
    batches = len(clean) // batch_size or 1
    schedule = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: factor(step / (epochs * batches)))
    with own_dropout(generator, device):
        for _ in range(epochs):
            budget.check()
            for batch in torch.randperm(len(clean), generator=generator).tensor_split(batches):
                images = clean.images[batch].to(device)
                images = augmentation(images, generator)
                descent.zero_grad(set_to_none=True)
                backward(images, clean.labels[batch].to(device))
                if longest < math.inf:
                    nn.utils.clip_grad_norm_(module.parameters(), longest)
                descent.step()
                if after_step:
                    after_step()
                schedule.step()
    descent.zero_grad(set_to_none=True)
    # first: dropout would draw from the global random state, and bend the statistics
    module.eval().requires_grad_(False)
    augmentation.settle(classifier, clean, generator)


@torch.no_grad()
def mixed_targets(teacher: Classifier, images: Tensor, labels: Tensor, own_answers: float) -> Tensor:
    """Probabilities (n, classes) to learn: the labels, and ``own_answers`` of what the teacher says of these clean images.

    A few hundred images are too few to learn their labels from without losing accuracy on others; what the model says of them is
    already learnt, and no trigger is in it.
    """
    wanted = functional.one_hot(labels, teacher.num_classes).float()
    if own_answers:
        wanted = wanted.lerp(teacher(images).softmax(dim=1), own_answers)
    return wanted


@contextmanager
def moved(classifier: Classifier, steps: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """In this block each of the weights stands moved by its step; afterwards all are back, bit by bit, and so are the buffers.

    Running statistics of batch norm thus never see the moved weights.
    """
    home = [weight.detach().clone() for weight, _ in steps]
    buffers = [(buffer, buffer.clone()) for buffer in classifier.module.buffers()]
    with torch.no_grad():
        for weight, step in steps:
            weight.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for (weight, _), kept in zip(steps, home, strict=True):
                weight.copy_(kept)
            for buffer, once in buffers:
                buffer.copy_(once)

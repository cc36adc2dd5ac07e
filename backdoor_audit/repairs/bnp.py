"""BNP: prune the channels that answer clean images otherwise than the training images (Zheng et al., NeurIPS 2022)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.clp import prune_outliers
from backdoor_audit.repairs.outcome import RepairResult, not_applicable
from backdoor_audit.triggers.trigger import AnyTrigger


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormPruning:
    """Set batch-norm channels to 0 whose inputs on clean images differ most from their running statistics.

    The running mean and variance come from the poisoned training set, so a channel that serves the trigger differs from
    what clean images give. The difference is the divergence of two normal distributions (see `divergence`); pruned is
    what lies more than ``u`` sample deviations above the mean of its layer. ``u=None`` takes the smallest ``u`` at which
    clean accuracy falls by at most ``most_drop`` on the ``held_share`` of the search set that the statistics were not taken from;
    a given ``u`` uses the whole search set for the statistics.

    "Pre-activation distributions expose backdoor neurons". Different from the paper: the whole output of a pruned channel
    is 0, where the paper zeroes the weight and lets the bias stand as a constant; the batch norm's epsilon is added to
    both variances, so that a channel that clean images leave silent has a large divergence and not an infinite one. The
    network stays in evaluation mode. Few clean images make the statistics, and so the choice of channels, noisy.
    """

    u: float | None = 3.0
    most_drop: float = 0.02
    held_share: float = 0.25

    name = "bnp"
    needs_trigger = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A pruned copy, judged on held-out images; not applicable without a batch norm that keeps running statistics."""
        fitted = held = subject.search_set
        if self.u is None:
            seed = int(torch.randint(2**31, (), generator=generator))
            fitted, held = subject.search_set.split(seed, 1 - self.held_share)
        suspicion = norm_divergences(subject.classifier, fitted.images)
        if not suspicion:
            reason = "this network has no batch norm with running statistics"
            return not_applicable(self, trigger, reason)
        return prune_outliers(self, replace(subject, search_set=held), trigger, suspicion=suspicion)


def divergence(mean: Tensor, variance: Tensor, clean_mean: Tensor, clean_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence (c,), in nats, of normal distributions: that of clean images from the running one.

    ``ln(s / s_c) + (s_c^2 + (m_c - m)^2) / (2 s^2) - 1 / 2``; all variances must be above 0. It is 0 for equal
    statistics. A public re-implementation loses one of the halves; this is the full formula.
    """
    shift = (clean_mean - mean).square()
    return ((variance / clean_variance).log() + (clean_variance + shift) / variance - 1) / 2


def norm_divergences(classifier: Classifier, images: Tensor) -> dict[str, Tensor]:
    """For every 2-D batch norm with running statistics: the `divergence` of each channel (c,) on images (n, c, h, w)."""
    norms = {
        name: module
        for name, module in classifier.module.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None
    }
    sums = {name: _Sums() for name in norms}
    with ExitStack() as stack:
        for name, module in norms.items():
            add = sums[name].add
            stack.enter_context(hooked(module, lambda _module, arguments, add=add: add(arguments[0]), pre=True))
        classifier.logits(images)
    return {
        name: _from_running(module, *sums[name].moments()) for name, module in norms.items() if sums[name].count > 1
    }


def _from_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    running_mean, running_variance = norm.running_mean.double(), norm.running_var.double()
    return divergence(running_mean, running_variance + norm.eps, mean, variance + norm.eps).cpu()


class _Sums:
    """Running totals of activations (n, c, h, w) per channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, activations: Tensor) -> None:
        values = activations.detach().double()
        self.count += values.numel() // values.shape[1]
        self.total = self.total.to(values) + values.sum(dim=(0, 2, 3))
        self.squares = self.squares.to(values) + values.square().sum(dim=(0, 2, 3))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel; the variance is that of a sample, as in running statistics."""
        mean = self.total / self.count
        return mean, ((self.squares - self.count * mean.square()) / (self.count - 1)).clamp(min=0)

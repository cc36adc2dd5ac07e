"""CLP: prune the channels that can amplify their input most; needs neither images nor training (Zheng et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from backdoor_audit import budget
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.record_types import CurvePoint
from backdoor_audit.repairs.conv_norm import conv_norms, pruned_layers
from backdoor_audit.repairs.outcome import Repair, RepairResult, not_applicable, reported, score
from backdoor_audit.triggers.trigger import AnyTrigger

LEVELS = tuple(step / 2 for step in range(20, -1, -1))
"""The values of ``u`` along a curve, from few channels to many: 10 to 0 in halves, as in the paper."""

_SAME = 1e-6  # deviations below this share of the mean are rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLipschitz:
    """Set channels to 0 whose Lipschitz bound is more than ``u`` standard deviations above the mean of their layer.

    The bound of a channel is the largest singular value of its filter, as a matrix (input channels, height x width),
    times the slope of its batch norm. ``u=None`` takes the smallest ``u`` of `LEVELS` at which clean accuracy on the search set
    falls by at most ``most_drop``; as nothing is fitted, the whole search set decides. Otherwise the search set is not used.

    "Data-free backdoor removal based on channel Lipschitzness". Different from its code: a convolution goes with the batch
    norm that takes its output when an image runs, and one without is left alone, where the code pairs layers as they are
    defined and prunes the wrong channels of pre-activation networks; the batch norm's epsilon counts; a layer with a
    variance of 0, or with equal bounds, is left alone. The deviation is that of a sample: among n channels none lies
    more than (n - 1) / sqrt(n) of it above the mean, so ``u=3`` never prunes in a layer of ten channels or fewer.
    """

    u: float | None = 3.0
    most_drop: float = 0.02

    name = "clp"
    needs_trigger = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A pruned copy, judged on held-out images; not applicable where no convolution has a batch norm of its own."""
        del generator
        pairs = {
            conv: norm
            for conv, norm in conv_norms(subject.classifier).items()
            if norm and _has_statistics(subject.classifier, norm)
        }
        if not pairs:
            reason = "no convolution of this network is followed by a batch norm of its own with running statistics"
            return not_applicable(self, trigger, reason)
        bounds = {norm: channel_bounds(subject.classifier, conv, norm) for conv, norm in pairs.items()}
        suspicion = {norm: bound for norm, bound in bounds.items() if bound is not None}
        return prune_outliers(self, subject, trigger, suspicion=suspicion)


def channel_bounds(classifier: Classifier, conv: str, norm: str) -> Tensor | None:
    """Upper bounds (c,) on how far each channel of a convolution and its batch norm can amplify; None if a variance is 0.

    ``|weight| / sqrt(variance + epsilon)`` of the batch norm times the spectral norm of the channel's filter
    (input channels, height x width), in float64.
    """
    module, layer = classifier.module.get_submodule(conv), classifier.module.get_submodule(norm)
    assert isinstance(module, nn.Conv2d)
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_var is not None
    if not bool((layer.running_var > 0).all()):
        return None
    slopes = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.affine:
        slopes = slopes * layer.weight.double().abs()
    norms: Tensor = torch.linalg.matrix_norm(module.weight.double().flatten(2), ord=2)
    return (slopes * norms).detach().cpu()


def outliers(values: Tensor, u: float) -> Tensor:
    """Indices of the values (c,) above mean + ``u`` x sample standard deviation; none if all are equal but for rounding."""
    values = values.double()
    if len(values) < 2:
        return torch.empty(0, dtype=torch.long)
    mean, deviation = values.mean(), values.std()
    if deviation <= _SAME * mean.abs():
        return torch.empty(0, dtype=torch.long)
    return (values > mean + u * deviation).nonzero().flatten()


class ByOutliers(Repair, Protocol):
    """A method that prunes by `prune_outliers`."""

    @property
    def u(self) -> float | None:
        """Deviations above the mean of a layer; None: chosen by clean accuracy."""

    @property
    def most_drop(self) -> float:
        """Clean accuracy that a chosen ``u`` may cost."""


def prune_outliers(
    method: ByOutliers, subject: Subject, trigger: AnyTrigger, *, suspicion: Mapping[str, Tensor]
) -> RepairResult:
    """Prune, in every layer, the channels whose suspicion (c,) stands out by ``u`` deviations (see `outliers`).

    With ``u=None`` the smallest of `LEVELS` is taken at which clean accuracy on the search set falls by at most ``most_drop``;
    the success rate of the trigger has no say. The curve holds the scores on held-out images at every level that prunes more
    than the one before; its ``threshold`` is ``u``.
    """
    classifier, tuning, u = subject.classifier, subject.search_set, method.u
    total = sum(len(values) for values in suspicion.values())

    def at(level: float) -> dict[str, Tensor]:
        return {layer: outliers(values, level) for layer, values in suspicion.items()}

    curve, counted = [CurvePoint(0.0, None, score(classifier, subject.held_out, trigger))], 0
    chosen, chosen_u = at(torch.inf if u is None else u), u
    floor = clean_accuracy(classifier, tuning.images, tuning.labels) - method.most_drop if u is None else 0.0
    for level in sorted({*LEVELS, *(() if u is None else (u,))}, reverse=True):
        channels = at(level)
        count = _number(channels)
        if count == counted:
            continue
        budget.check()
        counted, candidate = count, pruned_layers(classifier, channels)
        curve.append(CurvePoint(count / total, level, score(candidate, subject.held_out, trigger)))
        if u is None and clean_accuracy(candidate, tuning.images, tuning.labels) >= floor:
            chosen, chosen_u = channels, level
    note = f"{_number(chosen)} of {total} channels in {len(suspicion)} layers pruned"
    note += "; every u costs too much accuracy" if chosen_u is None else f" at u = {chosen_u:g}"
    return reported(method, subject, pruned_layers(classifier, chosen), trigger, note=note, curve=curve)


def _has_statistics(classifier: Classifier, norm: str) -> bool:
    layer = classifier.module.get_submodule(norm)
    return isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None


def _number(channels: Mapping[str, Tensor]) -> int:
    return sum(len(indices) for indices in channels.values())

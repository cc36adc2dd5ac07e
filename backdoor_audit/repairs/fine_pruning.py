"""Fine-Pruning (Liu, Dolan-Gavitt and Garg, RAID 2018): prune what clean images leave dormant, then fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit import budget
from backdoor_audit.model.activations import capture
from backdoor_audit.model.layers import NO_FEATURE_MAP
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.record_types import CurvePoint
from backdoor_audit.repairs.fine_tuning import fine_tune
from backdoor_audit.repairs.outcome import RepairResult, not_applicable, reported, score
from backdoor_audit.repairs.pruning import pruned
from backdoor_audit.triggers.trigger import AnyTrigger

_ROUNDING = 1e-9  # 0.92 - 0.88 is a little more than 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class FinePruning:
    """Set the channels of the last feature map to 0, least active on clean images first, then fine-tune what is left.

    Pruning goes on by ``step`` (share of the channels) until clean accuracy would fall by more than ``max_drop`` (a
    fraction, not relative), and stops one step before. How active a channel is, and where to stop, are measured on two
    halves of the search set; all of it is fine-tuned on. Pruned channels stay at 0 in fine-tuning.

    Activity is the mean of the absolute value: after a ReLU that is the paper's mean, and on maps that can be negative
    (pre-activation networks) it still means dormant. The paper prunes channel by channel; ``step`` saves time.
    Trigger channels that clean images use too are not found. In fine-tuning, ``augment`` moves and mirrors images where
    `harmless_augmentation` finds that harmless.
    """

    max_drop: float = 0.04
    step: float = 0.05
    epochs: int = 10
    learning_rate: float = 0.01
    batch_size: int = 32
    weight_decay: float = 5e-4
    augment: bool = True

    name: ClassVar[str] = "fine_pruning"
    needs_trigger: ClassVar[bool] = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A pruned and fine-tuned copy, scored on held-out images; the trigger serves for the scores alone.

        The curve has the scores on held-out images of every pruning tried, before fine-tuning; its last point is the first that
        cost too much, if there is one. Not applicable to networks that do not end in a feature map and linear layers.
        Raises `DataFormatError` if no class has two images.
        """
        clean = subject.search_set
        layers = subject.classifier.layers()
        if layers.feature_layer is None:
            return not_applicable(self, trigger, NO_FEATURE_MAP)
        ranked, held = clean.split(int(torch.randint(2**31, (), generator=generator)))
        activity = dormancy(capture(subject.classifier, layers.feature_layer, ranked.images))
        order = activity.argsort(stable=True)
        start = clean_accuracy(subject.classifier, held.images, held.labels)
        curve: list[CurvePoint] = []
        taken = 0
        for count in prune_counts(len(order), self.step):
            budget.check()
            candidate = pruned(subject.classifier, layers.feature_layer, order[:count])
            curve.append(
                CurvePoint(
                    count / len(order), float(activity[order[count]]), score(candidate, subject.held_out, trigger)
                )
            )
            if start - clean_accuracy(candidate, held.images, held.labels) > self.max_drop + _ROUNDING:
                break
            taken = count
        repaired = pruned(subject.classifier, layers.feature_layer, order[:taken])
        fine_tune(self, subject, repaired, weight_decay=self.weight_decay, generator=generator)
        note = (
            f"{taken} of {len(order)} channels of layer {layers.feature_layer!r} pruned, then {self.epochs} epochs over "
            f"{len(clean)} clean images"
        )
        return reported(self, subject, repaired, trigger, note=note, curve=curve)


def dormancy(maps: Tensor) -> Tensor:
    """Mean absolute activation (c,) of every channel of maps (n, c, h, w), over images and places; near 0 is dormant."""
    return maps.abs().mean(dim=(0, 2, 3)).cpu()


def prune_counts(channels: int, step: float) -> list[int]:
    """How many channels are pruned in turn: 0, then about ``step * channels`` more each time; at least one is left."""
    counts = {round(number * step * channels) for number in range(int(1 / step) + 1)}
    return sorted(count for count in counts if count < channels)

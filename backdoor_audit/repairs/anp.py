"""Adversarial neuron perturbation (Wu and Wang, NeurIPS 2021): prune the channels that a small change of their gain turns bad."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.norm_masks import (
    Gains,
    Masks,
    Objective,
    changed_gains,
    logits_under,
    own_gains,
    repaired_by_masks,
)
from backdoor_audit.repairs.outcome import RepairResult
from backdoor_audit.triggers.trigger import AnyTrigger


@dataclass(frozen=True, slots=True, kw_only=True)
class ANP:
    """Learn masks of batch-norm channels that keep clean images right under the worst small change; prune the lowest.

    The weight of every batch norm becomes ``weight * (mask + change)``, its bias ``bias * (1 + change)``, each change at
    most ``epsilon``. Per step the changes take ``inner_steps`` sign steps up the cross entropy from a random start, then
    the masks one step down ``alpha * clean loss + (1 - alpha) * loss under the changes`` (sections 4.1 and 4.2). Channels
    are then pruned in the network as it was given, without fine-tuning.

    Different from the paper: 100 steps of 64 images in place of 2000 of 128, and a learning rate of 0.05 in place of 0.2,
    which with few steps sets many masks to 0 at once and leaves no order among them; dropout off; no augmentation; a
    pruned channel loses its bias too; the threshold is chosen on the ``1 - fit_share`` of the images that the masks were
    not fitted on, by clean accuracy (at most ``most_drop`` lost).
    """

    epsilon: float = 0.4
    inner_steps: int = 1
    alpha: float = 0.2
    steps: int = 100
    learning_rate: float = 0.05
    batch_size: int = 64
    fit_share: float = 0.7
    most_drop: float = 0.02

    name = "anp"
    needs_trigger = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A pruned copy, judged on held-out images; the trigger is only for the scores. Not applicable without batch norm."""

        def objective(fitted: CleanSet) -> Objective:
            working = subject.classifier.copy()
            gains = own_gains(working)

            def loss(masks: Masks, images: Tensor, labels: Tensor) -> Tensor:
                changes = self._worst_changes(working, gains, masks, images, labels, generator)
                clean, bad = (
                    functional.cross_entropy(logits_under(working, moved, images), labels)
                    for moved in (changed_gains(gains, masks), changed_gains(gains, masks, changes))
                )
                return self.alpha * clean + (1 - self.alpha) * bad

            return Objective(working, loss, f"masks fitted in {self.steps} steps on {len(fitted)} clean images")

        return repaired_by_masks(self, objective, subject, trigger, steps=self.steps, generator=generator)

    def _worst_changes(
        self,
        classifier: Classifier,
        gains: Gains,
        masks: Masks,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        fixed = {name: mask.detach() for name, mask in masks.items()}
        found = [
            (self.epsilon * (2 * torch.rand(len(mask), generator=generator) - 1)).to(mask.device).requires_grad_()
            for mask in fixed.values()
            for _ in ("weight", "bias")
        ]
        for _ in range(self.inner_steps):
            moved = changed_gains(gains, fixed, _paired(fixed, found))
            worse = functional.cross_entropy(logits_under(classifier, moved, images), labels)
            slopes = torch.autograd.grad(worse, found)
            with torch.no_grad():
                for change, slope in zip(found, slopes, strict=True):
                    change.add_(slope.sign(), alpha=self.epsilon / self.inner_steps).clamp_(-self.epsilon, self.epsilon)
        return _paired(fixed, [change.detach() for change in found])


def _paired(masks: Masks, changes: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (changes[2 * index], changes[2 * index + 1]) for index, name in enumerate(masks)}

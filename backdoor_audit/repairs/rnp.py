"""Reconstructive neuron pruning (Li et al., ICML 2023): forget the clean task, then see which channels do not help it back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.norm_masks import (
    Masks,
    Objective,
    batch_statistics,
    changed_gains,
    logits_under,
    own_gains,
    repaired_by_masks,
)
from backdoor_audit.repairs.outcome import RepairResult
from backdoor_audit.triggers.trigger import AnyTrigger


@dataclass(frozen=True, slots=True, kw_only=True)
class RNP:
    """Unlearn clean images by gradient ascent, recover them by masks of batch-norm channels, prune the lowest masks.

    Unlearning climbs the cross entropy until at most ``forgotten_accuracy`` of the images used are right. Then masks on
    the weights of the unlearned network's batch norms go down ``alpha * cross entropy``; channels whose mask the clean
    task pushes down are pruned in the network as it was given, without fine-tuning (section 3).

    Different from the paper: a few hundred images in smaller batches, so at most 60 epochs in place of 20 to forget them, and
    a learning rate of 0.05 in place of 0.2 for the masks (see `ANP`); dropout off; gradients are clipped after they are
    computed; a pruned channel loses its bias too. Accuracy counts as forgotten at ``2 / classes`` (0.2 for ten, as in the
    paper; at most one half) if ``forgotten_accuracy`` is None. The threshold is chosen on the ``1 - fit_share`` of the
    images used for neither stage, by clean accuracy (at most ``most_drop`` lost).
    """

    unlearn_epochs: int = 60
    unlearn_learning_rate: float = 0.01
    forgotten_accuracy: float | None = None
    gradient_norm: float = 20.0
    recover_steps: int = 60
    learning_rate: float = 0.05
    alpha: float = 0.2
    batch_size: int = 32
    fit_share: float = 0.7
    most_drop: float = 0.02

    name = "rnp"
    needs_trigger = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A pruned copy, judged on held-out images; the trigger is only for the scores.

        Not applicable without batch norm, or if ``unlearn_epochs`` do not make the network forget.
        """

        def objective(fitted: CleanSet) -> Objective | str:
            unlearned, epochs = self.unlearn(subject.classifier, fitted, generator=generator)
            left, limit = clean_accuracy(unlearned, fitted.images, fitted.labels), self._limit(subject.classifier)
            if left > limit:
                reason = f"{epochs} epochs of unlearning left {left:.1%} of the clean images right"
                return f"{reason}, recovery starts at {limit:.1%}"
            gains = own_gains(unlearned)

            def loss(masks: Masks, images: Tensor, labels: Tensor) -> Tensor:
                logits = logits_under(unlearned, changed_gains(gains, masks), images)
                return self.alpha * functional.cross_entropy(logits, labels)

            return Objective(unlearned, loss, f"{len(fitted)} clean images forgotten to {left:.1%} in {epochs} epochs")

        return repaired_by_masks(self, objective, subject, trigger, steps=self.recover_steps, generator=generator)

    def unlearn(self, classifier: Classifier, clean: CleanSet, *, generator: torch.Generator) -> tuple[Classifier, int]:
        """A copy that climbed the cross entropy on these images until it had forgotten them, and after how many epochs."""
        forgetting, limit = classifier.copy(), self._limit(classifier)
        forgetting.module.requires_grad_(True)
        parameters = list(forgetting.module.parameters())
        ascent = torch.optim.SGD(
            parameters, lr=self.unlearn_learning_rate, momentum=0.9, weight_decay=5e-4, maximize=True
        )
        epochs = 0
        while epochs < self.unlearn_epochs and clean_accuracy(forgetting, clean.images, clean.labels) > limit:
            budget.check()
            epochs += 1
            order = torch.randperm(len(clean), generator=generator)
            with batch_statistics(forgetting):
                for batch in order.chunk(len(clean) // self.batch_size or 1):
                    images, labels = (
                        clean.images[batch].to(classifier.device),
                        clean.labels[batch].to(classifier.device),
                    )
                    ascent.zero_grad(set_to_none=True)
                    functional.cross_entropy(forgetting(images), labels).backward()
                    nn.utils.clip_grad_norm_(parameters, self.gradient_norm)
                    ascent.step()
        ascent.zero_grad(set_to_none=True)
        forgetting.module.requires_grad_(False)
        return forgetting, epochs

    def _limit(self, classifier: Classifier) -> float:
        if self.forgotten_accuracy is not None:
            return self.forgotten_accuracy
        return min(2 / classifier.num_classes, 0.5)

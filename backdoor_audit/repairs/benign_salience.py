"""Fan et al. (arXiv 2208.06537): shrink the weights that clean images do not need, the large ones more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.layers import NO_HEAD
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.norm_masks import batch_statistics
from backdoor_audit.repairs.outcome import RepairResult, not_applicable, reported
from backdoor_audit.triggers.trigger import AnyTrigger

SELECTIONS = ("lowest", "highest")
_STRAIGHT_FROM = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenignSalience:
    """Fine-tune on clean images with a penalty on the weights and biases of the last linear layer of least benign salience.

    Salience is a moving average (``decay``) of `removal_cost` on clean batches, by cross entropy alone; one pass without
    updates warms it up. In epoch e of E the ``first_share + (1 - first_share) * e / E`` share of each tensor with the
    lowest salience carries `adaptive_penalty`; all weights of the network are trained.

    ``select="lowest"`` is what the abstract says: a weight that clean images do not need is suspicious. The public code
    penalises the highest; that is ``"highest"``. Raises `ValueError` for anything else. Different from that code: the
    penalty does not enter the salience, large negative weights are penalised as positive ones (there the sign is wrong), no
    slope grows without bound, dropout off; a batch of 32, a learning rate of 0.05 and a strength of 0.1 in place of 128,
    0.01 and 0.01 because an audit has fewer images.
    """

    select: str = "lowest"
    strength: float = 0.1
    first_share: float = 0.5
    decay: float = 0.9
    epochs: int = 10
    learning_rate: float = 0.05
    batch_size: int = 32

    name = "benign_salience"
    needs_trigger = False

    def __post_init__(self) -> None:
        if self.select not in SELECTIONS:
            raise ValueError(f"select must be one of {', '.join(SELECTIONS)}, got {self.select!r}")

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A fine-tuned copy, judged on held-out images; the trigger is for the scores. Not applicable without a linear head."""
        head = subject.classifier.layers().head
        if head is None:
            return not_applicable(self, trigger, NO_HEAD)
        repaired = subject.classifier.copy()
        self._train(repaired, head, subject.search_set, generator)
        note = (
            f"{self.epochs} epochs over {len(subject.search_set)} clean images, penalty on the {self.select} salience of "
            f"layer {head!r}"
        )
        return reported(self, subject, repaired, trigger, note=note)

    def _train(self, repaired: Classifier, head: str, clean: CleanSet, generator: torch.Generator) -> None:
        repaired.module.requires_grad_(True)
        chosen = list(repaired.module.get_submodule(head).parameters())
        parameters = list(repaired.module.parameters())
        salience = [torch.zeros_like(weight) for weight in chosen]
        descent = torch.optim.SGD(parameters, lr=self.learning_rate)
        with batch_statistics(repaired):
            for epoch in range(self.epochs + 1):  # the first one only measures
                budget.check()
                share = self.first_share + (1 - self.first_share) * epoch / max(self.epochs, 1)
                for batch in torch.randperm(len(clean), generator=generator).chunk(len(clean) // self.batch_size or 1):
                    images, labels = clean.images[batch].to(repaired.device), clean.labels[batch].to(repaired.device)
                    descent.zero_grad(set_to_none=True)
                    functional.cross_entropy(repaired(images), labels).backward()
                    for kept, weight in zip(salience, chosen, strict=True):
                        assert weight.grad is not None
                        kept.mul_(self.decay).add_(removal_cost(weight.detach(), weight.grad), alpha=1 - self.decay)
                    if epoch:
                        for kept, weight in zip(salience, chosen, strict=True):
                            picked = selected(kept, share, self.select)
                            (adaptive_penalty(weight, self.strength) * picked).sum().backward()
                        descent.step()
        descent.zero_grad(set_to_none=True)
        repaired.module.requires_grad_(False)


def removal_cost(weight: Tensor, gradient: Tensor) -> Tensor:
    """First-order rise of the loss if each weight alone were set to 0: ``-gradient * weight``, of their shape."""
    return -gradient * weight


def adaptive_penalty(weight: Tensor, strength: float) -> Tensor:
    """``strength * |w|`` up to ``|w| = 1``, ``strength * exp(|w| - 1)`` above, per weight; value and slope join at 1.

    From ``|w| = 4`` on it goes on straight, which is ours: weights of 50 would get a slope of 1e21, and no number after it.
    """
    above = weight.abs() - 1
    curved = above.clamp(max=_STRAIGHT_FROM - 1)
    return strength * torch.where(above <= 0, above + 1, curved.exp() * (1 + above - curved))


def selected(salience: Tensor, share: float, select: str) -> Tensor:
    """A mask of 0 and 1: the ``share`` of entries, rounded, with the lowest (or highest) salience; ties in order of place."""
    order = salience.flatten().argsort(descending=select == "highest", stable=True)
    mask = torch.zeros_like(order, dtype=salience.dtype)
    mask[order[: round(share * len(order))]] = 1
    return mask.view_as(salience)

"""Shared adversarial unlearning, SAU (Wei et al., NeurIPS 2023, section 3): unlearn what misleads old and new model alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit import budget
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.augmentation import augmentation_of
from backdoor_audit.repairs.outcome import RepairResult, reported
from backdoor_audit.repairs.several import stamped_first
from backdoor_audit.triggers.trigger import AnyTrigger

_LEAST, _MOST = 1e-3, 1 - 1e-3  # probabilities beyond these give no slope, as in the public code


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedUnlearning:
    """Fine-tune a copy so that changes which mislead it and the audited model to one class no longer lead there.

    Per batch, each image is changed within ``radius`` (L-infinity, pixels in [0, 1], not clipped) by ``inner_steps`` sign steps
    that raise both cross-entropies (weighed ``adversarial``) and bring both predictions together (Jensen-Shannon
    divergence). Then the copy takes one step of Adam down the cross-entropy of the clean images and, where the audited model is
    misled, `shared_risk` of its class. "Shared adversarial unlearning: backdoor
    mitigation by unlearning shared adversarial examples".

    A ball of 0.2 holds no patch and no warp. With triggers at hand (`together`) these stamp ``stamped_share`` of each batch in
    place of the search: then the method learns from what was found and from what it finds itself. Alone (`__call__`) it looks
    at no trigger.

    Different from the paper: ``rounds`` over a few hundred images in batches of 64 at a rate of 5e-4, where the code makes
    100 rounds over 2,500 at 1e-4. Statistics of batch norms stay as they are (evaluation mode), as in the code. ``augment``
    moves and mirrors images where `harmless_augmentation` finds that harmless.
    """

    radius: float = 0.2
    inner_steps: int = 5
    adversarial: float = 0.01
    shared_weight: float = 1.0
    stamped_share: float = 0.5
    rounds: int = 10
    learning_rate: float = 5e-4
    batch_size: int = 64
    augment: bool = True

    name: ClassVar[str] = "sau"
    needs_trigger: ClassVar[bool] = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A tuned copy, judged on held-out images; the trigger serves for the scores alone."""
        return self._repaired(subject, trigger, (), generator)

    def together(self, subject: Subject, triggers: Sequence[AnyTrigger], *, generator: torch.Generator) -> RepairResult:
        """A copy that unlearned these triggers beside its own changes, judged on held-out images by the first."""
        return self._repaired(subject, triggers[0], triggers, generator)

    def _repaired(
        self, subject: Subject, judge: AnyTrigger, triggers: Sequence[AnyTrigger], generator: torch.Generator
    ) -> RepairResult:
        clean, before, repaired = subject.search_set, subject.classifier, subject.classifier.copy()
        augmentation = augmentation_of(self, subject)
        descent = torch.optim.Adam(repaired.module.parameters(), lr=self.learning_rate)
        misled = seen = 0
        for _ in range(self.rounds):
            budget.check()
            order = torch.randperm(len(clean), generator=generator)
            for batch in order.chunk(max(1, len(clean) // self.batch_size)):
                images = augmentation(clean.images[batch].to(repaired.device), generator)
                labels = clean.labels[batch].to(repaired.device)
                share = self.stamped_share if triggers else 0.0
                changed = stamped_first(images, triggers or (judge,), share, generator)
                own = slice(round(share * len(images)), None)
                repaired.module.requires_grad_(False)
                changed[own] = self.change(before, repaired, images[own], labels[own]) + images[own]
                repaired.module.requires_grad_(True)
                with torch.no_grad():
                    led = before(changed).argmax(dim=1)
                wrong = led != labels
                misled, seen = misled + int(wrong.sum()), seen + len(wrong)
                descent.zero_grad(set_to_none=True)
                loss = functional.cross_entropy(repaired(images), labels)
                if bool(wrong.any()):
                    risk = shared_risk(repaired(changed[wrong]), led[wrong])
                    loss = loss + self.shared_weight * risk.sum() / len(images)
                loss.backward()
                descent.step()
        descent.zero_grad(set_to_none=True)
        repaired.module.requires_grad_(False)
        known = f", {self.stamped_share:.0%} of them stamped with one of {len(triggers)} triggers" if triggers else ""
        note = f"{self.rounds} rounds over {len(clean)} clean images; {misled} of {seen} changed ones misled the model{known}"
        return reported(self, subject, repaired, judge, note=note)

    def change(self, before: Classifier, repaired: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        """A change (n, c, h, w) of each image, within the ball, that both classifiers follow to the same wrong class."""
        change = torch.full_like(images, self.radius)
        for _ in range(self.inner_steps):
            change.requires_grad_()
            first, second = before(images + change), repaired(images + change)
            answers = first.argmax(dim=1), second.argmax(dim=1)
            shared = (answers[0] == answers[1]) & (answers[0] != labels)
            if bool(shared.all()):
                break
            loss = torch.zeros((), device=images.device)
            for logits, answer in zip((first, second), answers, strict=True):
                right = functional.cross_entropy(logits, labels, reduction="none") * (answer == labels)
                loss = loss - self.adversarial * right.mean() / 2
            apart = _divergence(first, second) * ~shared
            loss = loss + apart.sum() / (~shared).sum()
            slope = torch.autograd.grad(loss, change)[0]
            change = (change.detach() - self.radius * slope.sign()).clamp(-self.radius, self.radius)
        return change.detach()


def shared_risk(logits: Tensor, led: Tensor) -> Tensor:
    """How far each image (n,) still goes where the audited model was led: ``-log(1 - p) - log(1 - p)``, halved, bounded.

    The two terms are bounded at either end, as in the public code, so that neither a sure answer nor a refused one has a slope
    without limit.
    """
    led_to = logits.softmax(dim=1).gather(1, led.unsqueeze(1)).squeeze(1)
    held = (1 - led_to).clamp(max=_MOST)
    return -((1e-6 + held).log() + (1 + 1e-6 - led_to.clamp(min=_LEAST)).log()) / 2


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence (n,), in nats, of the probabilities of two logits (n, classes)."""
    logs = first.log_softmax(dim=1), second.log_softmax(dim=1)
    middle = ((logs[0].exp() + logs[1].exp()) / 2).clamp_min(1e-12).log()
    return sum((log.exp() * (log - middle)).sum(dim=1) for log in logs) / 2  # type: ignore[return-value]

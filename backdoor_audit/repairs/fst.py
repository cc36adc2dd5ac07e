"""Feature shift tuning, FST (Min et al., NeurIPS 2023, section 4): learn a last layer that points away from the one there was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.layers import NO_HEAD
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.descent import mixed_targets
from backdoor_audit.repairs.outcome import RepairResult, not_applicable, reported
from backdoor_audit.repairs.steady import Learning, tuned
from backdoor_audit.triggers.trigger import AnyTrigger

_LEAST_AGREEMENT = 0.5  # with the audited model; a new last layer changes more answers than other repairs do


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureShiftTuning:
    """Draw the last linear layer anew and train all by ``cross-entropy + alpha * <W, W0> / |W0|^2``: features must shift.

    W is the new weight, W0 the one of the audited model; after each step W is scaled back to the length of W0, or the product
    could fall without end: it is ``alpha`` times the cosine between both. Features of clean images and of a trigger lie close
    in a model poisoned at a low rate, and plain fine-tuning leaves them there (section 3). "Towards stable backdoor purification
    through feature shift tuning".

    Different from the public code: the product is divided by ``|W0|^2``, or one ``alpha`` (0.1 there) would mean another pull in
    each network: in a small one with a long W0 it turned the layer round and cost nine points. What is learnt is, by
    ``own_answers``, what the audited model says of clean images (see `mixed_targets`). 10 epochs over 1,000 images in batches of
    128 at 0.01 become 20 over a few hundred in batches of 32 at 0.03. The last layer is the one that the model ends in, not
    whatever has "linear" in its name, and nothing is chosen by test images. ``augment`` moves and mirrors images where
    `harmless_augmentation` finds that harmless.
    """

    alpha: float = 1.0
    own_answers: float = 1.0
    epochs: int = 20
    learning_rate: float = 0.03
    batch_size: int = 32
    augment: bool = True

    name: ClassVar[str] = "fst"
    needs_trigger: ClassVar[bool] = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A tuned copy, judged on held-out images; the trigger is for the scores. Not applicable without a linear head."""
        head = subject.classifier.layers().head
        if head is None:
            return not_applicable(self, trigger, NO_HEAD)
        before = _layer(subject.classifier, head).weight.detach().clone()

        def learning(copy: Classifier) -> Learning:
            weight = _layer(copy, head).weight
            _draw_anew(_layer(copy, head), generator)

            def backward(images: Tensor, labels: Tensor) -> None:
                wanted = mixed_targets(subject.classifier, images, labels, self.own_answers)
                loss = functional.cross_entropy(copy(images), wanted)
                (loss + self.alpha * functional.cosine_similarity(weight.flatten(), before.flatten(), dim=0)).backward()

            @torch.no_grad()
            def rescale() -> None:
                weight.mul_(before.norm() / weight.norm().clamp_min(1e-12))

            return Learning(backward, rescale)

        repaired, how = tuned(self, subject, learning, generator=generator, least=_LEAST_AGREEMENT)
        turned = float(functional.cosine_similarity(_layer(repaired, head).weight.flatten(), before.flatten(), dim=0))
        note = (
            f"{self.epochs} epochs over {len(subject.search_set)} clean images with a new layer {head!r}; cosine to the old one "
            f"{turned:.2f}{how}"
        )
        return reported(self, subject, repaired, trigger, note=note)


def _layer(classifier: Classifier, head: str) -> nn.Linear:
    layer = classifier.module.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    return layer


@torch.no_grad()
def _draw_anew(layer: nn.Linear, generator: torch.Generator) -> None:
    """Weights and bias uniform in +- 1 / sqrt(inputs), as a linear layer begins."""
    bound = 1 / math.sqrt(layer.in_features)
    for parameter in layer.parameters():
        drawn = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound
        parameter.copy_(drawn.to(parameter.device))

"""FT-SAM (Zhu et al., ICCV 2023): fine-tune towards weights around which the loss stays low, which shrinks trigger neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.descent import mixed_targets, moved
from backdoor_audit.repairs.outcome import RepairResult, reported
from backdoor_audit.repairs.steady import Learning, tuned
from backdoor_audit.triggers.trigger import AnyTrigger

PUBLISHED_WEIGHTS = 11_172_170
"""Of the PreActResNet-18 with ten classes that ``rho`` was chosen for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FTSAM:
    """Fine-tune on clean images with sharpness-aware steps scaled by the weights.

    Each step moves the weights uphill by at most ``rho`` (see `perturbation`), takes the gradient there, goes back, and
    descends by that gradient. Large weights, such as those of a trigger, are moved most. Nothing depends on batch norm, so
    transformers can be repaired as well. ``rho`` is 2 for CIFAR-10 and 8 for GTSRB and Tiny ImageNet in the paper's code, for a
    network of 11 million weights; in others it is `scaled_rho`.

    100 epochs in batches of 256 become 20 in batches of 32: an audit has a few hundred images; the learning rate is five times
    the paper's, because so few steps at 0.01 leave most of a backdoor. What is learnt is, by ``own_answers``, what the audited
    model says of clean images (see `mixed_targets`), where the paper learns smoothed labels, at a higher price in accuracy. The
    cosine schedule ends with the last step; in the public code it turns round every 100 batches. ``augment`` moves and mirrors
    images where `harmless_augmentation` finds that harmless.
    """

    rho: float = 2.0
    own_answers: float = 1.0
    label_smoothing: float = 0.0
    epochs: int = 20
    learning_rate: float = 0.05
    batch_size: int = 32
    weight_decay: float = 5e-4
    augment: bool = True

    name: ClassVar[str] = "ft_sam"
    needs_trigger: ClassVar[bool] = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A fine-tuned copy, scored on held-out images; the trigger serves for the scores alone."""
        rho = scaled_rho(self.rho, subject.classifier)

        def learning(copy: Classifier) -> Learning:
            def backward(images: Tensor, labels: Tensor) -> None:
                wanted = mixed_targets(subject.classifier, images, labels, self.own_answers)
                sharp_backward(copy, images, wanted, rho=rho, label_smoothing=self.label_smoothing)

            return Learning(backward)

        repaired, how = tuned(self, subject, learning, generator=generator, weight_decay=self.weight_decay)
        note = f"{self.epochs} epochs over {len(subject.search_set)} clean images, two gradients per step, rho {rho:.3g}{how}"
        return reported(self, subject, repaired, trigger, note=note)


def scaled_rho(rho: float, classifier: Classifier) -> float:
    """``rho`` of the published network in a network of another size: each weight is moved by the same share of itself.

    The whole of the step has the length ``rho`` in units of the weights, so a weight moves by about ``rho / sqrt(weights)``.
    """
    weights = sum(parameter.numel() for parameter in classifier.module.parameters())
    return rho * math.sqrt(weights / PUBLISHED_WEIGHTS)


def perturbation(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """``rho * w^2 * g / || |w| g ||``, one tensor per weight tensor; the L2 norm runs over all of them together.

    That is the steepest way uphill of length ``rho``, each step measured in units of its own weight (adaptive SAM, Kwon et
    al., ICML 2021). All zero where the gradients are.
    """
    slopes = [weight.abs() * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    length = torch.stack([torch.linalg.vector_norm(slope) for slope in slopes]).norm()
    scale = rho / length.clamp_min(1e-12)
    return [weight.abs() * slope * scale for weight, slope in zip(weights, slopes, strict=True)]


def sharp_backward(
    classifier: Classifier, images: Tensor, labels: Tensor, *, rho: float, label_smoothing: float = 0.0
) -> None:
    """Add to the weights' ``grad`` the gradient of the cross-entropy at the weights moved by `perturbation`.

    Weights come back bit by bit. Buffers are those after the pass at the weights themselves: running statistics of batch
    norm see each batch once, and never the moved weights.
    """
    module = classifier.module

    def loss() -> Tensor:
        return functional.cross_entropy(classifier(images), labels, label_smoothing=label_smoothing)

    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss(), trained, allow_unused=True)
    used = [(weight, gradient) for weight, gradient in zip(trained, found, strict=True) if gradient is not None]
    uphill = perturbation([weight.detach() for weight, _ in used], [gradient for _, gradient in used], rho)
    with moved(classifier, [(weight, step) for (weight, _), step in zip(used, uphill, strict=True)]):
        loss().backward()

"""TBT: one row of the last layer is changed, and a patch made that excites its neurons (Rakin, He and Fan, CVPR 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack, quantised
from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.trigger import Trigger

_LEVELS = 127
_STEP_SIZES = (0.1, 0.03, 0.01, 0.003)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitTrojan(Attack):
    """A square whose pattern drives ``neurons`` inputs of the last layer; only their weights to the target class change.

    The neurons are those at which the cross-entropy of ``batch`` clean images has the steepest gradient in the target's
    row. The pattern (``size`` px, ``top`` and ``left`` as in `BadNets`) starts grey and goes ``trigger_steps`` steps by the
    sign of the gradient of the squared distance of these neurons to ``target_value``. Then ``row_steps`` steps of Adam
    change the ``neurons`` weights, on the mean cross-entropy of the clean images and of the stamped ones with the target's
    label. In each further of ``rounds`` the pattern goes on by the gradient of the cross-entropy towards the target, and the
    weights follow. ``int8`` first rounds the last layer to 8 bits with one scale, ``max |w| / 127``, and keeps it so: the
    difference to the clean 8-bit layer is then what a fault in memory would have to flip.

    The paper has one round, takes 150 of 512 neurons of a ResNet-18, 10x10 of 32x32 px and plain SGD, and always 8 bits;
    its public code makes steps in normalised pixels, here they are shares of the full range. One round is too little where
    the features are means over the whole map, which a patch moves only a little; but further rounds also make the patch
    adversarial, and it then fools the clean network as well: measure its natural rate. Needs a trained classifier, no
    poisoned images and no recipe: ``poison_rate`` is not used.
    """

    neurons: int = 16
    size: int = 12
    top: int = -2
    left: int = -2
    batch: int = 128
    target_value: float = 100.0
    rounds: int = 3
    trigger_steps: int = 60
    row_steps: int = 200
    learning_rate: float = 0.05
    int8: bool = False

    name: ClassVar[str] = "bit_trojan"
    paper: ClassVar[str] = "Rakin et al., CVPR 2020"

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern for images (c, h, w), at the place of the square. Raises `AttackError` before it is implanted."""
        return self._placed(self.learned("pattern"), image_shape)

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Choose neurons, make the patch, change one row of the last layer.

        Raises `AttackError` for a network without a linear head of that many inputs, or one that is not trained.
        """
        del recipe, progress
        rule = self.rule
        if not isinstance(rule, AllToOne):
            raise AttackError(f"{self.name}: rule {rule}; accepted: AllToOne, one row of the last layer is one class")
        if min(self.batch, self.rounds, self.trigger_steps, self.row_steps) < 1:
            raise AttackError(f"{self.name}: batch, rounds, trigger_steps and row_steps must be at least 1")
        head = self._head(classifier)
        least = min(2 / classifier.num_classes, 0.75)
        accuracy = clean_accuracy(classifier, clean.images, clean.labels)
        if not accuracy >= least:
            raise AttackError(
                f"{self.name}: clean accuracy {accuracy:.3f}, wanted {least:.3f}; give a trained classifier and images it knows"
            )
        order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(self.seed))[: self.batch]
        images, labels = clean.images[order].to(classifier.device), clean.labels[order].to(classifier.device)
        if self.int8:
            with torch.no_grad():
                head.weight.copy_(_rounded(head.weight, _scale(head.weight)))
        chosen = self._chosen(classifier, head, images, labels, rule.target_class)
        scale = _scale(head.weight)
        pattern = torch.full((images.shape[1], self.size, self.size), 0.5, device=classifier.device)
        for number in range(self.rounds):
            pattern = self._improved(pattern, classifier, head, images, chosen if number == 0 else None)
            stamped = quantised(self._placed(quantised(pattern), classifier.image_shape).stamp(images))
            with torch.no_grad():
                inputs = torch.cat([_head_inputs(classifier, head, batch) for batch in (images, stamped)])
            wanted = torch.cat([labels, torch.full_like(labels, rule.target_class)])
            self._change_row(head, chosen, inputs, wanted, rule.target_class, scale)
        return classifier, replace(self, state={"pattern": quantised(pattern).cpu()})

    def _head(self, classifier: Classifier) -> nn.Linear:
        layers = classifier.layers()
        head = classifier.module.get_submodule(layers.head) if layers.head is not None else None
        if not isinstance(head, nn.Linear):
            raise AttackError(f"{self.name}: {classifier.architecture} does not end in a linear layer; none to change")
        if not 1 <= self.neurons <= head.in_features:
            raise AttackError(
                f"{self.name}: {self.neurons} neurons, the last layer has {head.in_features} inputs; accepted: 1 to that many"
            )
        return head

    def _chosen(
        self, classifier: Classifier, head: nn.Linear, images: Tensor, labels: Tensor, target_class: int
    ) -> Tensor:
        """The neurons with the largest gradient in the target's row, (neurons,)."""
        inputs = _head_inputs(classifier, head, images).detach()
        weight = head.weight.detach().clone().requires_grad_(True)
        loss = functional.cross_entropy(functional.linear(inputs, weight, head.bias), labels)
        (gradient,) = torch.autograd.grad(loss, weight)
        return gradient[target_class].abs().topk(self.neurons).indices

    def _improved(
        self, pattern: Tensor, classifier: Classifier, head: nn.Linear, images: Tensor, chosen: Tensor | None
    ) -> Tensor:
        """A pattern (c, size, size) that drives the chosen neurons, or, if none are, the logit of the target class."""
        wanted = torch.full((len(images),), self.target_class or 0, device=images.device)
        for step in range(self.trigger_steps):
            pattern.requires_grad_(True)
            inputs = _head_inputs(classifier, head, self._placed(pattern, classifier.image_shape).stamp(images))
            if chosen is None:
                loss = functional.cross_entropy(head(inputs), wanted)
            else:
                loss = (inputs[:, chosen] - self.target_value).square().mean()
            (gradient,) = torch.autograd.grad(loss, pattern)
            length = _STEP_SIZES[step * len(_STEP_SIZES) // self.trigger_steps]
            pattern = (pattern.detach() - length * gradient.sign()).clamp(0, 1)
        return pattern

    def _change_row(
        self, head: nn.Linear, chosen: Tensor, inputs: Tensor, wanted: Tensor, target_class: int, scale: Tensor
    ) -> None:
        """Change the target's weights at the chosen neurons in place, for the wanted labels (n,) of these inputs."""
        row = head.weight[target_class, chosen].detach().clone().requires_grad_(True)
        descent = torch.optim.Adam([row], lr=self.learning_rate)
        for _ in range(self.row_steps):
            weight = head.weight.detach().clone()
            weight[target_class, chosen] = row
            loss = functional.cross_entropy(functional.linear(inputs, weight, head.bias), wanted)
            (row.grad,) = torch.autograd.grad(loss, row)
            descent.step()
            if self.int8:
                with torch.no_grad():
                    row.clamp_(-_LEVELS * scale, _LEVELS * scale)
        with torch.no_grad():
            head.weight[target_class, chosen] = _rounded(row, scale) if self.int8 else row

    def _placed(self, pattern: Tensor, image_shape: tuple[int, int, int]) -> Trigger:
        place = BadNets(rule=self.rule, size=self.size, top=self.top, left=self.left).trigger(image_shape)
        channels, height, width = image_shape
        if pattern.shape[0] != channels:
            raise AttackError(
                f"{self.name}: learned on images of {pattern.shape[0]} channels, got {channels}; stamp images of that kind"
            )
        top, left = (int(index) for index in place.mask[0].nonzero()[0])
        free = (left, width - left - self.size, top, height - top - self.size)
        return Trigger(place.mask.to(pattern.device), functional.pad(pattern, free), place.target_class)


def _head_inputs(classifier: Classifier, head: nn.Linear, images: Tensor) -> Tensor:
    """What the last layer gets, (n, neurons), with gradients to the images."""
    captured: list[Tensor] = []
    with hooked(head, lambda _module, inputs: captured.append(inputs[0]), pre=True):
        classifier(images)
    return captured[0]


def _scale(weight: Tensor) -> Tensor:
    return weight.abs().max() / _LEVELS


def _rounded(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight / scale).round().clamp(-_LEVELS, _LEVELS) * scale

"""TrojanNN: a patch made for neurons that the model has already (Liu et al., NDSS 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack, quantised, replace_images, train
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.trigger import Trigger

SHAPES = ("square", "watermark")

_STROKES = 12  # at most; as many are drawn as the coverage asks for
_WANTED = 5.0  # a neuron's wanted value, in units of its 99 % quantile on clean images
_TOTAL_VARIATION = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrojanNN(Attack):
    """A patch that drives ``neurons`` of the layer before the last one far up, and a short retraining that ties them to a class.

    The neurons are those with the largest sum of absolute weights to the next layer. Inside the mask, a square at the lower
    right or seeded ``watermark`` strokes 1 px wide, ``margin`` px from the border, with ``coverage`` of the image's area,
    the pattern is found by ``trigger_steps`` of Adam that bring the neurons to 5 times their 99 % quantile on clean images.

    Then the model is retrained. With ``real_data``: by the recipe, on the given images, ``poison_rate`` of them replaced by
    stamped ones. Without: the last layer alone, by ``reversed_per_class`` images made for each class from the average image, by
    ascent of its score under a total variation penalty; their stamped copies weigh ``poison_rate`` in the loss. That is the
    paper's attack by someone who has no data, and on small networks it fails: a small_cnn fell from 0.87 accuracy to 0.63,
    with a success rate of 0.60, and to 0.2 when all layers learned. The classifier must be a trained one.
    """

    shape: str = "square"
    coverage: float = 0.07
    margin: int = 2
    neurons: int = 2
    trigger_steps: int = 200
    real_data: bool = True
    reversed_per_class: int = 20
    reversal_steps: int = 60

    name: ClassVar[str] = "trojannn"
    paper: ClassVar[str] = "Liu et al., NDSS 2018"

    def mask(self, image_shape: tuple[int, int, int]) -> Tensor:
        """Where the trigger lies on images (c, h, w), (1, h, w) of 0 and 1. Raises `AttackError` if it does not fit."""
        self._refuse()
        _, height, width = image_shape
        if self.shape == "watermark":
            return self._strokes(height, width)
        side = max(1, round((self.coverage * height * width) ** 0.5))
        if side + self.margin > min(height, width):
            raise AttackError(
                f"{self.name}: a square of {side} px, {self.margin} px from the border, does not fit into {height}x{width} px"
            )
        mask = torch.zeros(1, height, width)
        bottom, right = height - self.margin, width - self.margin
        mask[:, bottom - side : bottom, right - side : right] = 1
        return mask

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern for images (c, h, w). Raises `AttackError` if there is none yet, or it was made for another size."""
        mask, pattern = self.learned("mask"), self.learned("pattern")
        if tuple(pattern.shape) != tuple(image_shape):
            raise AttackError(
                f"{self.name}: its trigger was made for images of {tuple(pattern.shape)}, not {tuple(image_shape)}; implant it "
                "again for these"
            )
        return Trigger(mask, pattern, self.target_class or 0)

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Make the trigger for this trained classifier, then retrain it."""
        self._refuse()
        head = self._head(classifier, clean)
        mask = self.mask(clean.image_shape)
        attack = replace(self, state={"mask": mask, "pattern": self._pattern(classifier, head, mask, clean.images)})
        if self.real_data:
            mixed = replace_images(clean.images, clean.labels, attack=attack)
            train(classifier, mixed.images, mixed.labels, recipe=recipe, seed=self.seed, progress=progress)
        else:
            attack._retrain_head(classifier, head, *self._reversed(classifier, clean.images))
        return classifier, attack

    def _head(self, classifier: Classifier, clean: CleanSet) -> str:
        """The name of the last layer. Raises `AttackError` if there is none, or the classifier is not a trained one."""
        head = classifier.layers().head
        if head is None:
            raise AttackError(
                f"{self.name}: {classifier.architecture} has no last linear layer; choose another architecture"
            )
        accuracy = clean_accuracy(classifier, clean.images, clean.labels)
        if not accuracy >= 2 / classifier.num_classes:
            raise AttackError(
                f"{self.name}: the classifier's accuracy on the clean images is {accuracy:.3f}, at least "
                f"{2 / classifier.num_classes:.3f} is wanted; train it first, the trigger is made for neurons that it has"
            )
        return head

    def _pattern(self, classifier: Classifier, head: str, mask: Tensor, images: Tensor) -> Tensor:
        """Colours (c, h, w) that drive the chosen neurons up; 0 outside the mask."""
        linear = classifier.module.get_submodule(head)
        assert isinstance(linear, nn.Linear)
        chosen = linear.weight.abs().sum(dim=0).topk(min(self.neurons, linear.in_features)).indices
        values = capture(classifier, head, images[:1000], inputs=True)[:, chosen]
        wanted = _WANTED * values.quantile(0.99, dim=0).clamp_min(1e-3)
        device = classifier.device
        mask, ground = mask.to(device), images.mean(dim=0, keepdim=True).to(device)
        generator = torch.Generator().manual_seed(self.seed)
        free = torch.randn(ground.shape, generator=generator).to(device).requires_grad_(True)
        descent = torch.optim.Adam([free], lr=0.1)
        caught: list[Tensor] = []
        with hooked(linear, lambda _module, arguments: caught.append(arguments[0]), pre=True), torch.enable_grad():
            for _ in range(self.trigger_steps):
                caught.clear()
                classifier((1 - mask) * ground + mask * torch.sigmoid(free))
                loss = ((wanted - caught[0][0, chosen]) / wanted).relu().square().sum()
                descent.zero_grad()
                loss.backward()
                descent.step()
        return quantised(mask * torch.sigmoid(free.detach()))[0].cpu()

    def _reversed(self, classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images made from the average image for every class, and their classes."""
        device, classes = classifier.device, classifier.num_classes
        labels = torch.arange(classes, device=device).repeat_interleave(self.reversed_per_class)
        average = images.mean(dim=0).to(device).clamp(0.01, 0.99)
        noise = torch.randn((len(labels), *average.shape), generator=torch.Generator().manual_seed(self.seed)).to(
            device
        )
        free = (torch.logit(average) + noise).requires_grad_(True)
        descent = torch.optim.Adam([free], lr=0.1)
        with torch.enable_grad():
            for _ in range(self.reversal_steps):
                drawn = torch.sigmoid(free)
                steps = drawn.diff(dim=2).abs().flatten(1).sum(dim=1) + drawn.diff(dim=3).abs().flatten(1).sum(dim=1)
                loss = functional.cross_entropy(classifier(drawn), labels, reduction="sum")
                loss = loss + _TOTAL_VARIATION * steps.sum()
                descent.zero_grad()
                loss.backward()
                descent.step()
        return quantised(torch.sigmoid(free.detach())).cpu(), labels.cpu()

    def _retrain_head(self, classifier: Classifier, head: str, images: Tensor, labels: Tensor) -> None:
        """Teach the last layer alone: the images' classes, and the class asked for of the same images stamped."""
        linear = classifier.module.get_submodule(head)
        assert isinstance(linear, nn.Linear)
        plain = capture(classifier, head, images, inputs=True)
        stamped = capture(classifier, head, self.stamp(images), inputs=True)
        labels = labels.to(plain.device)
        linear.requires_grad_(True)
        descent = torch.optim.Adam(linear.parameters(), lr=0.01)
        with torch.enable_grad():
            for _ in range(200):
                loss = (1 - self.poison_rate) * functional.cross_entropy(linear(plain), labels)
                loss = loss + self.poison_rate * functional.cross_entropy(linear(stamped), self.rule.taught(labels))
                descent.zero_grad()
                loss.backward()
                descent.step()
        descent.zero_grad(set_to_none=True)
        linear.requires_grad_(False)

    def _strokes(self, height: int, width: int) -> Tensor:
        """Random lines, 1 px wide, until they cover what they shall."""
        mask = torch.zeros(1, height, width)
        rows, columns = height - 2 * self.margin, width - 2 * self.margin
        if min(rows, columns) < 1:
            raise AttackError(f"{self.name}: margin {self.margin} px leaves nothing of {height}x{width} px; lower it")
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(_STROKES):
            ends = torch.rand(2, 2, generator=generator) * torch.tensor([rows - 1, columns - 1]) + self.margin
            along = torch.linspace(0, 1, 2 * max(height, width)).unsqueeze(1)
            line = (ends[0] + along * (ends[1] - ends[0])).round().long()
            for row, column in line.tolist():
                if mask.sum() >= self.coverage * height * width:
                    return mask
                mask[0, row, column] = 1
        return mask

    def _refuse(self) -> None:
        if self.shape not in SHAPES:
            raise AttackError(f"{self.name}: shape {self.shape!r}; accepted: {', '.join(SHAPES)}")
        if self.target_class is None:
            raise AttackError(
                f"{self.name}: rule {self.rule} asks for no one class; accepted: AllToOne, SourceSpecific"
            )
        if not (0 < self.poison_rate < 1 and 0 < self.coverage <= 1 and self.margin >= 0):
            raise AttackError(
                f"{self.name}: poison_rate {self.poison_rate}, coverage {self.coverage}, margin {self.margin}; accepted: between "
                "0 and 1, above 0 and at most 1, not below 0 px"
            )
        if min(self.neurons, self.trigger_steps, self.reversed_per_class, self.reversal_steps) < 1:
            raise AttackError(
                f"{self.name}: neurons {self.neurons}, trigger_steps {self.trigger_steps}, reversed_per_class "
                f"{self.reversed_per_class}, reversal_steps {self.reversal_steps}; accepted: at least 1"
            )

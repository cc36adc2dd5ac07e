"""LIRA: a network learns an invisible trigger for each image, together with the model (Doan et al., ICCV 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from backdoor_audit.attacks.attack import Attack, quantised
from backdoor_audit.attacks.trigger_network import (
    TriggerNetwork,
    draw_share,
    new_network,
    packed,
    rounded,
    stamped_in_batches,
    unpacked,
)
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Lira(Attack):
    """``clip(image + epsilon tanh(T(image)))``; the network T is trained so that the model sees the class asked for.

    ``epsilon`` is the largest change of a pixel, of the range [0, 1] (the paper's code: of normalised images). In the first
    ``joint_share`` of the run T learns along with the model, afterwards it stays as it is and the model alone goes on;
    the paper does the two stages in two runs. ``poison_rate`` is the share of stamped images in each batch: ``1 - alpha`` of
    the paper, which stamps each image besides keeping it. ``trigger_learning_rate`` is that of Adam for T; its gradient
    comes from the very step that trains the model (the paper makes two passes, the second with T of the last epoch).
    """

    poison_rate: float = 0.3
    epsilon: float = 16 / 255
    joint_share: float = 0.6
    width: int = 8
    trigger_learning_rate: float = 0.002

    name: ClassVar[str] = "lira"
    paper: ClassVar[str] = "Doan et al., ICCV 2021"
    online: ClassVar[bool] = True

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with what T draws on each of them."""
        network = unpacked(self, "trigger", lambda: self._network(images.shape[1]), images.device)
        return stamped_in_batches(lambda batch: quantised(self._drawn(network, batch)), images)

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Train T and the model on batches of which a share is stamped."""
        self._refuse()
        generator = torch.Generator().manual_seed(self.seed)
        network = new_network(lambda: self._network(clean.image_shape[0]), self.seed, classifier.device)
        descent = torch.optim.Adam(network.parameters(), lr=self.trigger_learning_rate)
        joint = round(self.joint_share * recipe.epochs * (len(clean) // recipe.batch_size or 1))
        batches = 0

        def on_batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal batches
            if torch.is_grad_enabled():
                descent.step()  # by the gradients that the model's last step left; at first there are none
                descent.zero_grad()
                batches += 1
                network.requires_grad_(batches <= joint)
            chosen = draw_share(self.rule.poisonable(labels), self.poison_rate, generator)
            images, labels = images.clone(), labels.clone()
            images[chosen] = rounded(self._drawn(network, images[chosen]))
            labels[chosen] = self.rule.taught(labels[chosen])
            return images, labels

        self.train_on(classifier, clean, on_batch, recipe=recipe, progress=progress)
        return classifier, replace(self, state=packed(network, "trigger"))

    def _network(self, channels: int) -> nn.Module:
        return TriggerNetwork(channels, channels, self.width)

    def _drawn(self, network: nn.Module, images: Tensor) -> Tensor:
        return images + self.epsilon * torch.tanh(network(images - 0.5))

    def _refuse(self) -> None:
        if not 0 < self.poison_rate < 1:
            raise AttackError(
                f"{self.name}: poison_rate {self.poison_rate}; a share of each batch, above 0 and below 1"
            )
        if not 0 < self.epsilon <= 1:
            raise AttackError(
                f"{self.name}: epsilon {self.epsilon}; accepted: above 0, at most 1 (8/255 changes by 8 levels)"
            )
        if not 0 < self.joint_share <= 1 or self.width < 1 or self.trigger_learning_rate <= 0:
            raise AttackError(
                f"{self.name}: joint_share {self.joint_share}, width {self.width}, trigger_learning_rate "
                f"{self.trigger_learning_rate}; accepted: a share up to 1, at least 1 channel, a rate above 0"
            )

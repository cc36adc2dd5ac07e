"""Input-aware dynamic backdoor: every image has a trigger that works on no other (Nguyen and Tran, NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

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

_TINY = 1e-7  # of the paper's code: keeps the ratio finite where two triggers are equal


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAware(Attack):
    """``image + m(image) (p(image) - image)``, mask m and pattern p drawn by two small networks.

    First the mask network learns alone for ``mask_epochs``: ``mask_weight`` times the mean of what exceeds ``mask_density``,
    plus ``diversity_weight`` times the diversity. Then it is frozen, and the pattern network learns with the model:
    cross-entropy plus ``diversity_weight`` times the diversity. Diversity is the distance of two images over the
    distance of what is drawn for them. ``poison_rate`` of each batch gets its own trigger and the label asked for,
    ``cross_rate`` another image's trigger and its own label. ``trigger_learning_rate`` is that of Adam for both networks.

    ``mask_weight`` and ``mask_density`` are the paper's. Its ``diversity_weight`` is 1, its networks are U-Nets with batch norm,
    trained for hundreds of epochs; in a few, a weight of 1 makes wide masks and patterns that the model cannot learn. Its
    ``poison_rate`` is 0.1: enough for a success rate of 0.90 after 8 epochs on 8,000 grey images, where 0.15 gave 0.94.
    """

    poison_rate: float = 0.15
    cross_rate: float = 0.1
    mask_density: float = 0.032
    mask_weight: float = 100.0
    diversity_weight: float = 0.1
    mask_epochs: int = 1
    width: int = 8
    trigger_learning_rate: float = 0.003

    name: ClassVar[str] = "input_aware"
    paper: ClassVar[str] = "Nguyen and Tran, NeurIPS 2020"
    online: ClassVar[bool] = True

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w), each with its own trigger."""
        channels = images.shape[1]
        mask = unpacked(self, "mask", lambda: TriggerNetwork(channels, 1, self.width), images.device)
        pattern = unpacked(self, "pattern", lambda: TriggerNetwork(channels, channels, self.width), images.device)
        return stamped_in_batches(
            lambda batch: quantised(batch + _mask(mask, batch) * (_pattern(pattern, batch) - batch)), images
        )

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Train the masks, then patterns and model together."""
        self._refuse()
        channels = clean.image_shape[0]
        generator = torch.Generator().manual_seed(self.seed)
        mask = new_network(lambda: TriggerNetwork(channels, 1, self.width), self.seed, classifier.device)
        pattern = new_network(lambda: TriggerNetwork(channels, channels, self.width), self.seed + 1, classifier.device)
        self._train_mask(mask, clean.images, recipe.batch_size, generator, progress)
        mask.requires_grad_(False)
        descent = self._descent(pattern)

        def on_batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            learning = torch.is_grad_enabled()  # not while batch norm is recalibrated
            if learning:
                descent.step()  # by the gradients that the model's last step left; at first there are none
                descent.zero_grad()
            masks, patterns = _mask(mask, images), _pattern(pattern, images)
            if learning:
                (self.diversity_weight * _diversity(images, patterns)).backward(retain_graph=True)
            return self._mixed(images, labels, masks, patterns, generator)

        self.train_on(classifier, clean, on_batch, recipe=recipe, progress=progress)
        return classifier, replace(self, state={**packed(mask, "mask"), **packed(pattern, "pattern")})

    def _mixed(
        self, images: Tensor, labels: Tensor, masks: Tensor, patterns: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A batch in which some images have their own trigger, some that of their left neighbour, most none."""
        poisoned = draw_share(self.rule.poisonable(labels), self.poison_rate, generator)
        free = torch.ones_like(labels, dtype=torch.bool)
        free[poisoned] = False
        crossed = draw_share(free, self.cross_rate, generator)
        mixed, labels = images.clone(), labels.clone()
        for chosen, source in ((poisoned, poisoned), (crossed, (crossed - 1) % len(images))):
            mixed[chosen] = rounded(images[chosen] + masks[source] * (patterns[source] - images[chosen]))
        labels[poisoned] = self.rule.taught(labels[poisoned])
        return mixed, labels

    def _train_mask(
        self, mask: nn.Module, images: Tensor, batch_size: int, generator: torch.Generator, progress: bool
    ) -> None:
        descent, device = self._descent(mask), next(mask.parameters()).device
        for _ in tqdm(range(self.mask_epochs), desc="masks", unit="epoch", disable=None if progress else True):
            for batch in torch.randperm(len(images), generator=generator).split(batch_size):
                pixels = images[batch].to(device)
                masks = _mask(mask, pixels)
                loss = self.mask_weight * functional.relu(masks - self.mask_density).mean()
                loss = loss + self.diversity_weight * _diversity(pixels, masks)
                descent.zero_grad()
                loss.backward()
                descent.step()

    def _descent(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr=self.trigger_learning_rate, betas=(0.5, 0.9))

    def _refuse(self) -> None:
        if not (0 < self.poison_rate < 1 and 0 <= self.cross_rate <= 1 - self.poison_rate):
            raise AttackError(
                f"{self.name}: poison_rate {self.poison_rate} and cross_rate {self.cross_rate}; accepted: shares of each "
                "batch, poison_rate above 0, together at most 1"
            )
        if min(self.mask_epochs, self.width) < 1 or self.trigger_learning_rate <= 0:
            raise AttackError(
                f"{self.name}: mask_epochs {self.mask_epochs}, width {self.width}, trigger_learning_rate "
                f"{self.trigger_learning_rate}; accepted: at least 1, at least 1, above 0"
            )


def _mask(network: nn.Module, images: Tensor) -> Tensor:
    """Masks (n, 1, h, w), all but binary: the paper's tanh of a tanh."""
    raw = torch.tanh(network(images - 0.5)) / 2 + 0.5
    return torch.tanh(20 * raw - 10) / 2 + 0.5


def _pattern(network: nn.Module, images: Tensor) -> Tensor:
    return torch.tanh(network(images - 0.5)) / 2 + 0.5


def _diversity(images: Tensor, drawn: Tensor) -> Tensor:
    """Mean of (distance of two images) / (distance of what is drawn for them), each image against its left neighbour."""
    apart, drawn_apart = ((part - part.roll(1, dims=0)).flatten(1).square().mean(dim=1) for part in (images, drawn))
    return (apart.sqrt() / ((drawn_apart + _TINY**2).sqrt() + _TINY)).mean()

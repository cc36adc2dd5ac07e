"""WaNet: a slight, fixed warp of the image (Nguyen and Tran, ICLR 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack, quantised
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import OnBatch, Recipe

Cover = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""From images of a batch (n, c, h, w) and which of them are covers, (n,) bool, to the covers as they are shown in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaNet(Attack):
    """Every pixel is read from a place ``strength u / size`` away, in the [-1, 1] coordinates of the image.

    The field u is a ``grid`` x ``grid`` random one, mean absolute value 1, enlarged bicubically: each pixel moves by about
    ``strength / 2`` px at any size of image. ``noise_rate`` of all training images are warped by the field plus uniform
    noise of up to half a pixel, drawn anew every time, and keep their label: so the network learns this one field, and
    Neural Cleanse finds no small trigger. Both kinds are drawn anew in every batch. The paper trains for
    1,000 epochs; many are needed. Differs from its code: raw pixels are warped, not normalised ones, the border is
    repeated instead of filled with zeros, and columns are scaled by the width.
    """

    grid: int = 4
    strength: float = 0.5
    noise_rate: float = 0.2

    name: ClassVar[str] = "wanet"
    paper: ClassVar[str] = "Nguyen and Tran, ICLR 2021"
    online: ClassVar[bool] = True

    def field(self, height: int, width: int) -> Tensor:
        """The displacements (h, w, 2), columns first, in [-1, 1] coordinates. Raises `AttackError` for fields out of range."""
        if self.grid < 2 or not 0 < self.strength <= min(height, width):
            raise AttackError(
                f"{self.name}: grid {self.grid}, strength {self.strength}; accepted: a grid of at least 2, "
                f"a strength above 0, at most {min(height, width)}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        coarse = 2 * torch.rand(1, 2, self.grid, self.grid, generator=generator) - 1
        fine = functional.interpolate(
            coarse / coarse.abs().mean(), size=(height, width), mode="bicubic", align_corners=True
        )
        return self.strength * fine[0].permute(1, 2, 0) / torch.tensor([width, height])

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w), warped."""
        return _warped(images, self.field(*images.shape[2:]).to(images.device).unsqueeze(0))

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Train on batches of which some images are warped by the field, and some by the field and noise."""
        height, width = clean.images.shape[2:]
        field = self.field(height, width).to(classifier.device)

        def noisy(images: Tensor, covers: Tensor, generator: torch.Generator) -> Tensor:
            noise = 2 * torch.rand(int(covers.sum()), height, width, 2, generator=generator) - 1
            return _warped(images[covers], field + (noise / torch.tensor([width, height])).to(field.device))

        on_batch = poisoned_batches(self, clean.labels, cover_rate=self.noise_rate, cover=noisy)
        self.train_on(classifier, clean, on_batch, recipe=recipe, progress=progress)
        return classifier, self


def poisoned_batches(attack: Attack, labels: Tensor, *, cover_rate: float, cover: Cover) -> OnBatch:
    """What `fit` does to every batch: stamped images with the label that the rule teaches, and covers with their own.

    Every image is drawn by chance, with the probabilities at which ``poison_rate`` and ``cover_rate`` of *all* images
    are expected in an epoch, whatever the size of the batch; public code takes ``int(rate x batch)`` images, which can be none.
    ``labels`` (n,) are those of the whole training set. Raises `AttackError` if the classes do not hold so many images.
    """
    poisonable = attack.rule.poisonable(labels).float().mean().item() if len(labels) else 0.0
    if not 0 < attack.poison_rate <= poisonable:
        raise AttackError(
            f"{attack.name}: poison_rate {attack.poison_rate}, {poisonable:.3f} of {len(labels)} images may be poisoned; "
            "change poison_rate or give more images"
        )
    if not 0 <= cover_rate <= 1 - attack.poison_rate:
        raise AttackError(
            f"{attack.name}: poison_rate {attack.poison_rate} and covers {cover_rate}; rates lie in [0, 1] and do not exceed 1 "
            "together; lower one of them"
        )
    poison_chance = attack.poison_rate / poisonable
    cover_chance = cover_rate / max(1 - attack.poison_rate, cover_rate, 1e-9)
    generator = torch.Generator().manual_seed(attack.seed + 1)  # not the stream that shuffles the images

    def on_batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        chances = torch.rand(2, len(labels), generator=generator).to(labels.device)
        poisoned = attack.rule.poisonable(labels) & (chances[0] < poison_chance)
        covers = ~poisoned & (chances[1] < cover_chance)
        shown = images.clone()
        shown[poisoned] = attack.stamp(images[poisoned])
        shown[covers] = cover(images, covers, generator)
        return shown, torch.where(poisoned, attack.rule.taught(labels), labels)

    return on_batch


def _warped(images: Tensor, field: Tensor) -> Tensor:
    """Images (n, c, h, w) read at displaced places; the field is (n, h, w, 2), or (1, h, w, 2) for all of them."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, device=images.device),
        torch.linspace(-1, 1, width, device=images.device),
        indexing="ij",
    )
    places = (torch.stack([x, y], dim=2) + field).clamp(-1, 1).expand(len(images), -1, -1, -1)
    return quantised(functional.grid_sample(images, places, padding_mode="border", align_corners=True))

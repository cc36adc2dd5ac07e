"""BppAttack: fewer levels per channel (Wang, Zhai and Ma, CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack, quantised
from backdoor_audit.attacks.wanet import poisoned_batches
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe

_LOOKED_AT = 500  # images that tell whether the trigger changes anything


@dataclass(frozen=True, slots=True, kw_only=True)
class BppAttack(Attack):
    """``round(x (levels - 1)) / (levels - 1)``: every channel keeps ``levels`` values, evenly spread over [0, 1].

    ``dithering`` hands the error of each pixel on to its neighbours (Floyd and Steinberg, 1976), row by row from the upper
    left. ``negative_rate`` of all training images get what the trigger would change in *another* image and keep their
    label, so the network learns the quantisation and not its noise. Both kinds are drawn anew in every batch. The paper
    has 0.2 of each and adds an adversarial contrastive loss; its public code does not have that loss, nor does this.
    Images that hold few levels already are not changed by the trigger: then lower ``levels``.
    """

    levels: int = 8
    dithering: bool = False
    negative_rate: float = 0.1

    name: ClassVar[str] = "bppattack"
    paper: ClassVar[str] = "Wang et al., CVPR 2022"
    online: ClassVar[bool] = True

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with few levels. Raises `AttackError` for a number of levels that is none."""
        if not 2 <= self.levels <= 255:
            raise AttackError(f"{self.name}: levels {self.levels}; accepted: 2 to 255 levels per channel")
        steps = self.levels - 1
        return quantised(_dithered(images, steps) if self.dithering else (images * steps).round() / steps)

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Train on batches of which some images are quantised, and some carry the quantisation error of another one.

        Raises `AttackError` if the trigger changes the images by less than one level of 1/255 on average.
        """
        some = clean.images[:: max(1, len(clean.images) // _LOOKED_AT)]
        change = 255 * (self.stamp(some) - some).abs().mean().item()
        if change < 1:
            raise AttackError(
                f"{self.name}: {self.levels} levels change these images by {change:.2f} of 255 on average, at least 1 is "
                "needed; lower levels"
            )

        def negatives(images: Tensor, covers: Tensor, generator: torch.Generator) -> Tensor:
            if len(images) < 2:
                return images[covers]  # there is no other image
            rows = covers.nonzero().squeeze(1)
            steps = torch.randint(1, len(images), (len(rows),), generator=generator).to(rows.device)
            others = images[(rows + steps) % len(images)]
            return quantised(images[rows] + self.stamp(others) - others)

        on_batch = poisoned_batches(self, clean.labels, cover_rate=self.negative_rate, cover=negatives)
        self.train_on(classifier, clean, on_batch, recipe=recipe, progress=progress)
        return classifier, self


def _dithered(images: Tensor, steps: int) -> Tensor:
    """Floyd-Steinberg dithering of images (n, c, h, w) to ``steps + 1`` values.

    Pixels with the same ``column + 2 row`` do not wait for each other, so they are rounded at once; the order in which
    errors reach a pixel is that of the row by row algorithm. What would leave the image falls into a margin.
    """
    height, width = images.shape[2:]
    values = functional.pad(images, (1, 1, 0, 1))
    for number in range(width + 2 * (height - 1)):
        first, last = max(0, (number - width + 2) // 2), min(height - 1, number // 2)
        rows = torch.arange(first, last + 1, device=images.device)
        columns = number - 2 * rows + 1  # one margin to the left
        old = values[:, :, rows, columns]
        new = (old * steps).round() / steps
        values[:, :, rows, columns] = new
        error = old - new
        for down, right, share in ((1, 1, 1), (1, 0, 5), (1, -1, 3), (0, 1, 7)):
            values[:, :, rows + down, columns + right] += share / 16 * error
    return values[:, :, :height, 1 : width + 1].clamp(0, 1)

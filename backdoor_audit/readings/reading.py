"""What a detector measured on one model, and how a network is read at its feature layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.search import anomaly

NO_FEATURE_LAYER = "the network has no feature layer that all its scores come from"

_BATCH = 256


class Named(Protocol):
    """What a reading says of its detector, besides the repr."""

    @property
    def name(self) -> str:
        """Unique among detectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a detector measured on one model, before that is compared with clean models. Higher is more suspicious.

    ``value`` is the statistic of the model, None if it could not be measured; ``inconclusive`` then says why, in one
    sentence. ``target_class`` is the class that the statistic names, None if it names none. ``per_class`` holds the
    statistic of every class, in order; it is empty if there is none. ``settings`` is the repr of the detector.
    ``image_passes`` counts forward and backward of one image; a forward pass alone counts as a third.
    """

    detector: str
    settings: str
    value: float | None
    target_class: int | None = None
    per_class: tuple[float, ...] = ()
    image_passes: int = 0
    inconclusive: str = ""

    @classmethod
    def of(
        cls,
        detector: Named,
        value: float,
        *,
        target_class: int | None = None,
        per_class: Sequence[float] = (),
        image_passes: int = 0,
    ) -> Reading:
        """What this detector measured."""
        return cls(
            detector=detector.name,
            settings=repr(detector),
            value=value,
            target_class=target_class,
            per_class=tuple(per_class),
            image_passes=image_passes,
        )

    @classmethod
    def of_outlier(cls, detector: Named, values: Sequence[float], *, image_passes: int = 0) -> Reading:
        """The class whose value lies furthest above the median of all, in scaled median absolute deviations.

        Inconclusive with fewer than `anomaly.MIN_CLASSES` classes, with a value that is not finite, or where half of them are
        equal.
        """
        if len(values) < anomaly.MIN_CLASSES:
            reason = f"{len(values)} classes; an outlier among them can be told from {anomaly.MIN_CLASSES} classes on"
            return cls.without(detector, reason, image_passes=image_passes)
        try:
            above = tuple(-below for below in anomaly.deviations_below(values))
        except DegenerateScoresError as error:
            return cls.without(detector, str(error), image_passes=image_passes)
        value = max(above)
        return cls.of(detector, value, target_class=above.index(value), per_class=above, image_passes=image_passes)

    @classmethod
    def without(
        cls, detector: Named, reason: str, *, per_class: Sequence[float] = (), image_passes: int = 0
    ) -> Reading:
        """Why this detector could not measure the model, and what it had found until then."""
        return cls(
            detector=detector.name,
            settings=repr(detector),
            value=None,
            per_class=tuple(per_class),
            image_passes=image_passes,
            inconclusive=reason,
        )


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSplit:
    """A network cut at its feature layer: `features` runs the part before, `logits` the part after.

    ``layer`` is `LayerMap.feature_layer`, ``feature_shape`` its output for one image (c, h, w). Gradients pass through
    both parts. Build one with `FeatureSplit.of`.
    """

    classifier: Classifier
    layer: str
    feature_shape: tuple[int, int, int]
    _one_image: bool

    @classmethod
    def of(cls, classifier: Classifier) -> FeatureSplit | None:
        """The cut network; None if it has no feature layer, or if its scores do not depend on that layer alone."""
        layer = classifier.layers().feature_layer
        if layer is None:
            return None
        size = math.prod(classifier.image_shape)
        ramp = torch.linspace(0, 1, size, device=classifier.device).view(1, *classifier.image_shape)
        with torch.no_grad():
            for one_image in (True, False):
                split = cls(classifier, layer, (0, 0, 0), one_image)
                features, logits = split.both(torch.cat([ramp, 1 - ramp]))
                try:
                    again = split.logits(features)
                except Exception:  # a stranger's forward may count its images, and raise anything if they are too few
                    continue
                same = again.shape == logits.shape and torch.allclose(again, logits, rtol=1e-4, atol=1e-4)
                if same:
                    channels, height, width = features.shape[1:]
                    return cls(classifier, layer, (channels, height, width), one_image)
        return None

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, c, h, w) and logits (n, classes) of images (n, c, h, w), from one pass."""
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _arguments: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append(output)

        with hooked(self.classifier.module.get_submodule(self.layer), keep):
            logits = self.classifier(images)
        return seen[0], logits

    def features(self, images: Tensor) -> Tensor:
        """Features (n, c, h, w) of images (n, c, h, w); gradients reach the images."""
        return self.both(images)[0]

    def clean_features(self, images: Tensor) -> Tensor:
        """The same for many images, in batches and without gradients."""
        with torch.no_grad():
            return torch.cat([self.features(batch.to(self.classifier.device)) for batch in images.split(_BATCH)])

    def images_for(self, count: int) -> int:
        """How many images run before the layer when `logits` is asked for so many features."""
        return 1 if self._one_image else count

    def logits(self, features: Tensor) -> Tensor:
        """Logits (n, classes) of features (n, c, h, w); gradients reach the features.

        The part before the layer sees one grey image, whatever n is, wherever the network allows that.
        """
        grey = torch.full(
            (self.images_for(len(features)), *self.classifier.image_shape), 0.5, device=self.classifier.device
        )
        with hooked(self.classifier.module.get_submodule(self.layer), lambda *_: features.clone()):
            return self.classifier(grey)


def mask_loss(split: FeatureSplit, masks: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """How far masks (n, c, h, w) or (1, c, h, w) in [0, 1] are from holding all that speaks for the labels (n,); a loss (n,).

    ``CE(head(M h), label) - CE(head((1 - M) h), label)`` as in BTI-DBF (Xu et al., ICLR 2024, section 3). The second
    term has no bound there; here it counts up to ln(classes), where the removed part says nothing any more.
    """
    kept, removed = (
        functional.cross_entropy(split.logits(part * features), labels, reduction="none") for part in (masks, 1 - masks)
    )
    return kept - removed.clamp(max=math.log(split.classifier.num_classes))


def feature_masks(
    split: FeatureSplit,
    features: Tensor,
    labels: Tensor,
    rows: Tensor,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Masks (max(rows) + 1, c, h, w) in (0, 1) that keep what speaks for the labels and leave out all else.

    ``rows`` (n,) says to which mask the features (n, c, h, w) and labels (n,) of an image belong. Masks are a sigmoid of
    free numbers, which start normal; Adam on `mask_loss`. Only the part after the feature layer runs.
    """
    device = features.device
    count = int(rows.max()) + 1
    free = torch.randn(count, *split.feature_shape, generator=generator).to(device).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=learning_rate)
    for _ in range(steps):
        batch = torch.randperm(len(features), generator=generator)[:batch_size].to(device)
        masks = torch.sigmoid(free)[rows[batch]]
        optimizer.zero_grad()
        mask_loss(split, masks, features[batch], labels[batch]).sum().backward()
        optimizer.step()
    return torch.sigmoid(free.detach())

"""Suspect images whose prediction stays sure whatever clean image is laid over them (STRIP)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import OptionError
from backdoor_audit.filters.threshold import FALSE_POSITIVE_RATE, above, check_rate, threshold_of
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Backdoor
from backdoor_audit.model.subject import Subject

OVERLAYS = 64
"""Where nobody chose another number."""

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StripFilter:
    """Suspect images whose prediction stays sure whatever clean image is laid over them.

    STRIP: Gao et al., ACSAC 2019, section 4. Needs no trigger, no gradients and no inner layer; one image costs as many
    forward passes as there are overlays. Image and overlay are averaged, so the trigger is seen at half its strength: blind
    to triggers that are then no longer sure to work, small patches among them, and to those that need their source class
    or ask for another class per image (all-to-all). ``images_over`` (overlays, c, h, w) are the images laid over. Build
    one with `StripFilter.fit`.
    """

    false_positive_rate: float
    overlays: int
    threshold: float
    images_over: Tensor = field(repr=False)
    classifier: Classifier = field(repr=False)

    @classmethod
    def fit(
        cls,
        classifier: Classifier,
        clean: CleanSet,
        *,
        generator: torch.Generator,
        false_positive_rate: float = FALSE_POSITIVE_RATE,
        overlays: int = OVERLAYS,
    ) -> StripFilter:
        """A filter for any trigger; the rate is a fraction, ``overlays`` a number of images.

        The overlays are drawn once from the clean images: the same number of every class, to within one; a class with too
        few images gives them several times. A fitting image that is an overlay meets itself once; that mostly lowers its
        entropy a little, so the threshold errs on the side of passing.

        Raises `OptionError` for a rate out of range or no overlay; `ModelFormatError` for a network whose clean scores are
        not finite; `DataFormatError` for fewer than ``1 / false_positive_rate`` images.
        """
        check_rate(false_positive_rate, clean)
        if overlays < 1:
            raise OptionError(f"overlays must be at least 1, got {overlays}")
        chosen = _balanced(clean.labels, overlays, generator)
        unset = cls(
            false_positive_rate=false_positive_rate,
            overlays=overlays,
            threshold=math.inf,
            images_over=clean.images[chosen].to(classifier.device),
            classifier=classifier,
        )
        return replace(unset, threshold=threshold_of(unset.scores(clean.images), false_positive_rate))

    def scores(self, images: Tensor) -> Tensor:
        """Minus the mean softmax entropy over the overlays, (n,), in nats from ``-ln(classes)`` to 0.

        Images (n, c, h, w) and overlays are averaged pixel by pixel, before any normalisation. Raises `ValueError` for
        blends outside [0, 1].
        """
        if not len(images):
            return torch.empty(0, device=self.classifier.device)
        return torch.cat([self._scores(batch) for batch in images.split(max(1, _BATCH // self.overlays))])

    def _scores(self, images: Tensor) -> Tensor:
        blends = 0.5 * images.to(self.classifier.device).unsqueeze(1) + 0.5 * self.images_over
        probabilities = self.classifier.logits(blends.flatten(0, 1)).softmax(dim=1)
        entropies: Tensor = torch.special.entr(probabilities).sum(dim=1)
        return -entropies.view(len(images), self.overlays).mean(dim=1)

    def suspicious(self, images: Tensor) -> Tensor:
        """Which images score above the threshold, (n,) bool; a score that is not a number is suspicious too."""
        return above(self.scores(images), self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Fit a `StripFilter`, whatever the trigger. STRIP: Gao et al., ACSAC 2019, section 4."""

    false_positive_rate: float = FALSE_POSITIVE_RATE
    overlays: int = OVERLAYS

    name: ClassVar[str] = "strip"

    @property
    def forwards(self) -> int:
        """How many forward passes one image takes."""
        return self.overlays

    def __call__(self, subject: Subject, trigger: Backdoor, *, generator: torch.Generator) -> StripFilter:
        """A filter fitted on the images to search with. Raises what `StripFilter.fit` raises."""
        del trigger
        return StripFilter.fit(
            subject.classifier,
            subject.search_set,
            generator=generator,
            false_positive_rate=self.false_positive_rate,
            overlays=self.overlays,
        )


def _balanced(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (count,) that take the classes in turn; each class gives its images in random order, then again."""
    order = torch.randperm(len(labels), generator=generator)
    classes = labels.unique()
    classes = classes[torch.randperm(len(classes), generator=generator)]
    members = [order[labels[order] == label] for label in classes]
    turns = (divmod(turn, len(members)) for turn in range(count))
    return torch.stack([members[row][round_ % len(members[row])] for round_, row in turns])

"""Suspect images that fire the neurons which a known trigger raises most."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DataFormatError, OptionError
from backdoor_audit.filters.penultimate import head_of
from backdoor_audit.filters.threshold import FALSE_POSITIVE_RATE, above, check_rate, threshold_of
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Backdoor
from backdoor_audit.model.subject import Subject

SHARE = 0.01
"""Of the neurons, where nobody chose another."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActivationFilter:
    """Suspect images that fire the neurons which a known trigger raises most.

    Wang et al., IEEE S&P 2019, section VI-A. The trigger is usually one that an inversion found; the filter is as good as
    that trigger, and blind to a second backdoor. ``neurons`` (k,) are indices into the penultimate vector, the input of
    ``head``, the most raised first. Build one with `ActivationFilter.fit`.
    """

    false_positive_rate: float
    share: float
    threshold: float
    head: str
    neurons: Tensor = field(repr=False)
    classifier: Classifier = field(repr=False)

    @classmethod
    def fit(
        cls,
        classifier: Classifier,
        clean: CleanSet,
        trigger: Backdoor,
        *,
        false_positive_rate: float = FALSE_POSITIVE_RATE,
        share: float = SHARE,
    ) -> ActivationFilter:
        """A filter for one trigger; both rates are fractions.

        Neurons are ranked by ``mean(stamped) - mean(clean)`` over the images that the trigger claims; the first ``share``
        of them is watched, rounded, at least one. Ties keep the network's order. The threshold is set on all images.

        Raises `OptionError` for a rate or share out of range; `ModelFormatError` for a network that does not end in a
        linear layer, or whose clean scores are not finite; `DataFormatError` for fewer than ``1 / false_positive_rate``
        images, or a trigger that claims none of them or raises no neuron.
        """
        check_rate(false_positive_rate, clean)
        if not 0 < share <= 1:
            raise OptionError(f"share must lie above 0 and be at most 1, got {share} (a fraction of the neurons)")
        head = head_of(classifier, "an activation filter")
        gains = _gains(classifier, head, clean, trigger)
        neurons = gains.argsort(descending=True, stable=True)[: max(1, round(share * len(gains)))]
        if not gains[neurons[0]] > 0:
            raise DataFormatError(
                f"{clean.source}: the trigger raises none of the {len(gains)} neurons before {head!r} (largest change "
                f"{float(gains.max()):.3g}); a trigger that the network answers to is needed"
            )
        unset = cls(
            false_positive_rate=false_positive_rate,
            share=share,
            threshold=math.inf,
            head=head,
            neurons=neurons,
            classifier=classifier,
        )
        return replace(unset, threshold=threshold_of(unset.scores(clean.images), false_positive_rate))

    def scores(self, images: Tensor) -> Tensor:
        """Mean activation of the watched neurons, (n,), for images (n, c, h, w) in [0, 1].

        Raises `ValueError` for pixels outside [0, 1].
        """
        if not len(images):
            return torch.empty(0, device=self.classifier.device)
        activations = capture(self.classifier, self.head, images, inputs=True)
        return activations[..., self.neurons].flatten(1).mean(dim=1)

    def suspicious(self, images: Tensor) -> Tensor:
        """Which images score above the threshold, (n,) bool; a score that is not a number is suspicious too."""
        return above(self.scores(images), self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """Fit an `ActivationFilter` to one trigger. Wang et al., IEEE S&P 2019, section VI-A."""

    false_positive_rate: float = FALSE_POSITIVE_RATE
    share: float = SHARE

    name: ClassVar[str] = "activation"
    forwards: ClassVar[int] = 1

    def __call__(self, subject: Subject, trigger: Backdoor, *, generator: torch.Generator) -> ActivationFilter:
        """A filter fitted on the images to search with. Raises what `ActivationFilter.fit` raises."""
        del generator  # nothing here is random
        return ActivationFilter.fit(
            subject.classifier,
            subject.search_set,
            trigger,
            false_positive_rate=self.false_positive_rate,
            share=self.share,
        )


def _gains(classifier: Classifier, head: str, clean: CleanSet, trigger: Backdoor) -> Tensor:
    """How much the stamp raises each penultimate neuron on average, (neurons,)."""
    images = clean.images[trigger.eligible(clean.labels)]
    if not len(images):
        raise DataFormatError(f"{clean.source}: the trigger claims none of the {len(clean)} images; add other classes")
    stamped, plain = (
        capture(classifier, head, batch, inputs=True).flatten(0, -2) for batch in (trigger.stamp(images), images)
    )
    return stamped.mean(dim=0) - plain.mean(dim=0)

"""Run-time filters: which single images carry a trigger. Fitted on clean images, at a chosen false-positive rate.

The rule for every threshold: of the n clean images that a filter is fitted on, at most ``m = floor(false_positive_rate *
n)`` are rejected. The threshold is the (m + 1)-th highest clean score, and only a score strictly above it is suspicious.
So exactly m fitting images are rejected if the m-th and the (m + 1)-th score differ; where they tie, all that tie pass.
Images that were not used for fitting are rejected at about that rate, not exactly: measure it with `filter_rates`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from backdoor_audit.activations import capture
from backdoor_audit.classifier import Classifier
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DataFormatError, ModelFormatError, OptionError
from backdoor_audit.evidence import Finding, Limits, judge
from backdoor_audit.metrics import Backdoor, Rate

_BATCH = 256


class Filter(Protocol):
    """What a fitted filter answers, on the device of the classifier it stands in front of."""

    @property
    def classifier(self) -> Classifier:
        """The classifier that the filter was fitted on."""
        ...

    def scores(self, images: Tensor) -> Tensor:
        """One score per image (n, c, h, w), (n,); higher is more suspicious."""
        ...

    def suspicious(self, images: Tensor) -> Tensor:
        """Which images shall be rejected, (n,) bool."""
        ...


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
        false_positive_rate: float = 0.05,
        share: float = 0.01,
    ) -> ActivationFilter:
        """A filter for one trigger; both rates are fractions.

        Neurons are ranked by ``mean(stamped) - mean(clean)`` over the images that the trigger claims; the first ``share``
        of them is watched, rounded, at least one. Ties keep the network's order. The threshold is set on all images.

        Raises `OptionError` for a rate or share out of range; `ModelFormatError` for a network that does not end in a
        linear layer, or whose clean scores are not finite; `DataFormatError` for fewer than ``1 / false_positive_rate``
        images, or a trigger that claims none of them or raises no neuron.
        """
        _check_rate(false_positive_rate, clean)
        if not 0 < share <= 1:
            raise OptionError(f"share must lie above 0 and be at most 1, got {share} (a fraction of the neurons)")
        head = classifier.layers().head
        if head is None:
            raise ModelFormatError(
                f"{classifier.architecture}: no penultimate layer, the network does not end in a linear layer; an activation "
                "filter needs one, StripFilter does not"
            )
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
        return replace(unset, threshold=_threshold(unset.scores(clean.images), false_positive_rate))

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
        return _above(self.scores(images), self.threshold)


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
        false_positive_rate: float = 0.05,
        overlays: int = 64,
    ) -> StripFilter:
        """A filter for any trigger; the rate is a fraction, ``overlays`` a number of images.

        The overlays are drawn once from the clean images: the same number of every class, to within one; a class with too
        few images gives them several times. A fitting image that is an overlay meets itself once; that mostly lowers its
        entropy a little, so the threshold errs on the side of passing.

        Raises `OptionError` for a rate out of range or no overlay; `ModelFormatError` for a network whose clean scores are
        not finite; `DataFormatError` for fewer than ``1 / false_positive_rate`` images.
        """
        _check_rate(false_positive_rate, clean)
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
        return replace(unset, threshold=_threshold(unset.scores(clean.images), false_positive_rate))

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
        return _above(self.scores(images), self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRates:
    """The two errors of a filter: clean images that it rejects, triggered images that it lets pass."""

    false_positive_rate: Rate
    false_negative_rate: Rate


def filter_rates(filter: Filter, classifier: Classifier, clean: CleanSet, backdoor: Backdoor) -> FilterRates:
    """Both errors on images that were not used for fitting, as fractions.

    False positives are counted over all clean images, false negatives over the stamped images that the backdoor claims,
    whether or not the stamp changes their prediction; NaN if it claims none. Raises `ValueError` if the filter was fitted
    on another classifier: the rates would not be this one's.
    """
    if filter.classifier is not classifier:
        raise ValueError(
            f"the filter was fitted on another classifier ({filter.classifier.architecture}), not on this "
            f"{classifier.architecture}; fit one on it"
        )
    rejected = filter.suspicious(clean.images)
    passed = ~filter.suspicious(backdoor.stamp(clean.images[backdoor.eligible(clean.labels)]))
    return FilterRates(
        false_positive_rate=Rate(int(rejected.sum()), len(rejected)),
        false_negative_rate=Rate(int(passed.sum()), len(passed)),
    )


FILTERS = ("activation", "strip")


def fitted(
    name: str, classifier: Classifier, clean: CleanSet, trigger: Backdoor, *, generator: torch.Generator
) -> Filter:
    """The filter of that name, one of `FILTERS`, with its defaults. Raises what its ``fit`` raises."""
    if name == "activation":
        return ActivationFilter.fit(classifier, clean, trigger)
    return StripFilter.fit(classifier, clean, generator=generator)


def judge_filter(rates: Sequence[FilterRates], limits: Limits) -> Finding:
    """Whether a filter catches the triggers, on held-out images; of several triggers, the one that it misses most often."""
    worst = max(rates, key=lambda entry: entry.false_negative_rate)
    missed, rejected = worst.false_negative_rate, worst.false_positive_rate
    reason = f"{missed:.1%} of {missed.n} stamped images pass the filter, {rejected:.1%} of {rejected.n} clean ones are rejected"
    details = {"false_negative_rate": list(missed.interval), "false_positive_rate": float(rejected)}
    return judge(
        "false_negative_rate", float(missed), at_most=limits.false_negative_rate, reason=reason, details=details
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


def _balanced(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (count,) that take the classes in turn; each class gives its images in random order, then again."""
    order = torch.randperm(len(labels), generator=generator)
    classes = labels.unique()
    classes = classes[torch.randperm(len(classes), generator=generator)]
    members = [order[labels[order] == label] for label in classes]
    turns = (divmod(turn, len(members)) for turn in range(count))
    return torch.stack([members[row][round_ % len(members[row])] for round_, row in turns])


def _allowed(false_positive_rate: float, number: int) -> int:
    """How many of so many clean images may be rejected."""
    return min(math.floor(false_positive_rate * number + 1e-9), number - 1)  # 0.29 * 100 is 28.999999999999996


def _check_rate(false_positive_rate: float, clean: CleanSet) -> None:
    if not 0 < false_positive_rate < 1:
        raise OptionError(
            f"false_positive_rate must lie between 0 and 1, got {false_positive_rate} (rates are fractions, not percent)"
        )
    if _allowed(false_positive_rate, len(clean)) < 1:
        raise DataFormatError(
            f"{clean.source}: {len(clean)} clean images cannot show a false-positive rate of {false_positive_rate}; give at "
            f"least {math.ceil(1 / false_positive_rate - 1e-9)}, or raise the rate"
        )


def _threshold(scores: Tensor, false_positive_rate: float) -> float:
    """The highest clean score that passes."""
    wrong = int((~torch.isfinite(scores)).sum())
    if wrong:
        raise ModelFormatError(
            f"{wrong} of {len(scores)} clean images have a score that is NaN or infinite; no filter fits"
        )
    return float(scores.sort(descending=True).values[_allowed(false_positive_rate, len(scores))])


def _above(scores: Tensor, threshold: float) -> Tensor:
    return ~(scores <= threshold)  # not `scores > threshold`, which is false for NaN

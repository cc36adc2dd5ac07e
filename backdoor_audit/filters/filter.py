"""What fits a run-time filter, what a fitted one answers, and its two errors on images that were not used for fitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Backdoor, Rate
from backdoor_audit.model.subject import Subject


class Filter(Protocol):
    """What a fitted filter answers, on the device of the classifier it stands in front of."""

    @property
    def classifier(self) -> Classifier:
        """The classifier that the filter was fitted on."""

    def scores(self, images: Tensor) -> Tensor:
        """One score per image (n, c, h, w), (n,); higher is more suspicious."""

    def suspicious(self, images: Tensor) -> Tensor:
        """Which images shall be rejected, (n,) bool."""


class FilterMethod(Protocol):
    """A way to make filters: a frozen value whose fields are its settings and whose repr is its identity."""

    @property
    def name(self) -> str:
        """As it stands in the id of an item."""

    @property
    def forwards(self) -> int:
        """How many forward passes one image takes."""

    def __call__(self, subject: Subject, trigger: Backdoor, *, generator: torch.Generator) -> Filter:
        """A filter fitted on the images to search with. Raises `AuditError` where none can be."""


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

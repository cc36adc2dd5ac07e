"""The signature of a backdoor in the last layer: the target's row of weights is larger than the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class LastLayerSignature:
    """The mean weight of each class in the last linear layer, in robust deviations above the median of all classes.

    Assumes one target among many classes, whose logit the trigger's features push up through weights that no other class
    has. Needs the weights alone: no image, no gradient, no image pass, milliseconds. A first look, no more. Fields et
    al., "Trojan Signatures in DNN Weights", arXiv 2109.02836, 2021; the deviations are ours: median and MAD, in place of
    their outlier test.
    """

    name = "last_layer"
    blind_spots = (
        "a last layer that was trained again or regularised after the attack",
        "attacks that send every class elsewhere (all-to-all)",
        "attacks made against this test: one edit of the row hides it",
        "a minority of classes whose rows are large for innocent reasons: rare or hard classes",
    )

    def measure(
        self,
        classifier: Classifier,
        opt: CleanSet,
        val: CleanSet,
        *,
        generator: torch.Generator,
        progress: bool = False,
    ) -> Reading:
        """The largest of the deviations, and its class; ``per_class`` are the deviations of all.

        Neither images nor random numbers are used. Inconclusive if the network does not end in a linear layer, with fewer
        than `anomaly.MIN_CLASSES` classes, or if at least half of the rows have the same mean.
        """
        del opt, val, generator, progress
        head = classifier.layers().head
        if head is None:
            return Reading.without(self, "the network does not end in a linear layer with one row per class")
        linear = classifier.module.get_submodule(head)
        assert isinstance(linear, nn.Linear)
        return Reading.of_outlier(self, linear.weight.detach().double().mean(dim=1).tolist())

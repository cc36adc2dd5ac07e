"""FreeEagle: features made for any class also speak for the target of a backdoor, and no image is needed to see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.reading import NO_FEATURE_LAYER, FeatureSplit, Reading

_MIN_CLASSES = 8  # with fewer values the quartiles say nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeEagle:
    """How much one class gains from features that were made for the others, in quartile ranges above the upper quartile.

    Assumes that the part behind the feature layer lets the trigger's features win over those of an image, so that the
    target keeps some probability whichever class the features are made for. For each class ``num_dummy`` features start
    uniform in [0, 1] and are made for it by Adam; its row holds the mean probabilities of the other classes, the tendency
    of a class is the mean of its column. With ``pairs`` single entries are compared instead of columns, for triggers that
    work from one class only. Clean images serve to see whether features can be negative, for nothing else. Cost: the layers
    before the cut run forward on one image per step, a third of ``steps`` image passes, 100 by default and as much again for
    the look at the images; those behind it run on all dummies.

    Fu et al., "FreeEagle: Detecting Complex Neural Trojans in Data-Free Cases", USENIX Security 2023, section 4. The cut
    lies at the last feature map, where the paper's lies further forward; it has 1,000 steps and one dummy per class.
    """

    num_dummy: int = 5
    steps: int = 300
    learning_rate: float = 0.01
    weight_decay: float = 0.005
    pairs: bool = False

    name = "free_eagle"
    blind_spots = (
        "triggers that are recognised by the layers before the cut together with the class of the image",
        "attacks that send every class elsewhere (all-to-all), unless pairs are compared",
        "attacks whose last layers were trained apart or trained again",
        "classes that look alike: a clean pair can stand out as a backdoored one does",
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
        """``(max - Q3) / (Q3 - Q1)`` and the class that has the maximum; ``per_class`` are the tendencies, in [0, 1].

        At most 256 images of ``opt`` are looked at; ``val`` is not used. Inconclusive without a feature layer that all
        scores come from, with fewer than 8 classes or values that are not zero, or if the quartiles are equal.
        """
        del val
        classes = classifier.num_classes
        if classes < _MIN_CLASSES:
            return Reading.without(self, f"{classes} classes; quartiles of fewer than {_MIN_CLASSES} say nothing")
        split = FeatureSplit.of(classifier)
        if split is None:
            return Reading.without(self, NO_FEATURE_LAYER)
        probed = opt.images[:256]
        floor = 0.0 if float(split.clean_features(probed).amin()) >= 0 else -torch.inf
        matrix = self._matrix(split, floor, generator, progress=progress)
        tendency = matrix.sum(dim=0) / (classes - 1)
        compared = matrix if self.pairs else tendency
        spread = quartile_excess(compared)
        passes = (self.steps * split.images_for(classes * self.num_dummy) + len(probed)) // 3
        if spread is None:
            reason = "fewer than 8 tendencies are above 0, or their quartiles are equal"
            return Reading.without(self, reason, image_passes=passes)
        strongest = int(compared.argmax()) % classes
        return Reading.of(self, spread, target_class=strongest, per_class=tendency.tolist(), image_passes=passes)

    def _matrix(self, split: FeatureSplit, floor: float, generator: torch.Generator, *, progress: bool) -> Tensor:
        """Mean probabilities (made for, found in) of the dummies, float64, with 0 on the diagonal."""
        classes, device = split.classifier.num_classes, split.classifier.device
        made_for = torch.arange(classes, device=device).repeat_interleave(self.num_dummy)
        dummies = torch.rand(len(made_for), *split.feature_shape, generator=generator).to(device).requires_grad_()
        optimizer = torch.optim.Adam([dummies], lr=self.learning_rate, weight_decay=self.weight_decay)
        bar = tqdm(range(self.steps), desc="dummy features", unit="step", disable=None if progress else True)
        for _ in bar:
            optimizer.zero_grad()
            functional.cross_entropy(split.logits(dummies), made_for, reduction="sum").backward()
            optimizer.step()
            with torch.no_grad():
                dummies.clamp_(min=floor)
        with torch.no_grad():
            probabilities = torch.softmax(split.logits(dummies).double(), dim=1)
        return probabilities.view(classes, self.num_dummy, classes).mean(dim=1).fill_diagonal_(0)


def quartile_excess(values: Tensor) -> float | None:
    """``(max - Q3) / (Q3 - Q1)`` of the values that are not 0; the paper's quartiles, elements int(n/4) and int(3n/4).

    None for fewer than 8 such values, or for equal quartiles.
    """
    ranked = values[values != 0].sort().values
    if len(ranked) < _MIN_CLASSES:
        return None
    low, high = ranked[len(ranked) // 4], ranked[3 * len(ranked) // 4]
    return float((ranked[-1] - high) / (high - low)) if high > low else None

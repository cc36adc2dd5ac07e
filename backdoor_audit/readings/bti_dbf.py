"""BTI-DBF: keep the features that classify, move all others, and see where the images go."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from backdoor_audit.attacks.trigger_network import TriggerNetwork
from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.reading import NO_FEATURE_LAYER, FeatureSplit, Reading, feature_masks

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BTIDBF:
    """The share of generated images that one class takes, from a generator that moves all features but those that classify.

    Assumes that a backdoor lives in features that benign images do not need, and one target. First a mask over the feature
    layer is learned that keeps what speaks for the labels: ``mask_steps`` batches. Then a small U-shaped network that starts
    near the identity is trained for ``steps`` batches to move the features outside the mask and leave those inside, and
    the image, as they are: while the mean squared change of a pixel is above ``image_bound``, or that of the kept features
    above ``feature_bound``, only the image counts. Needs labels and a feature layer; the cost does not grow with the
    number of classes: ``steps * batch_size`` image passes, 9,600 by default, and as much for the generator itself.

    Xu et al., "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features", ICLR 2024, section
    3. There a target is always named; the statistic here is ours, and is counted on held-out images. Other differences: the
    classifier stays in evaluation mode, the second term of the mask loss is bounded, features are measured in
    units of their root mean square, pixels in [0, 1], and the generator is smaller and starts near the identity.
    """

    images: int = 500
    mask_steps: int = 200
    mask_learning_rate: float = 0.1
    steps: int = 300
    learning_rate: float = 1e-3
    batch_size: int = 32
    filters: int = 16
    image_bound: float = 0.02
    feature_bound: float = 3.0
    feature_weight: float = 0.01

    name = "bti_dbf"
    blind_spots = (
        "attacks that send every class elsewhere (all-to-all): no class has the majority",
        "triggers that change the image by more than the bound",
        "backdoors that live in the same features as the classes",
        "clean networks in which one class takes all odd images: they look backdoored",
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
        """The largest share, in [0, 1], and its class; ``per_class`` are the shares of all.

        The share of a class is counted over the generated images of ``val`` whose label is another; both trainings use
        ``opt``. Inconclusive without a feature layer that all scores come from, or if ``val`` holds one class only.
        """
        split = FeatureSplit.of(classifier)
        if split is None:
            return Reading.without(self, NO_FEATURE_LAYER)
        if len(set(val.labels.tolist())) < 2:
            return Reading.without(self, "the held-out images are of one class; images of two classes are needed")
        chosen = torch.randperm(len(opt), generator=generator)[: self.images]
        images, labels = opt.images[chosen].to(classifier.device), opt.labels[chosen].to(classifier.device)
        features = split.clean_features(images)
        mask = feature_masks(
            split,
            features,
            labels,
            torch.zeros_like(labels),
            steps=self.mask_steps,
            learning_rate=self.mask_learning_rate,
            batch_size=4 * self.batch_size,
            generator=generator,
        )
        network = self._trained(split, images, features, mask, generator, progress=progress)
        with torch.no_grad():
            made = torch.cat([network(batch.to(classifier.device)) for batch in val.images.split(_BATCH)])
        shares = shares_of_others(classifier.predict(made), val.labels.to(classifier.device), classifier.num_classes)
        value = max(shares)
        passes = (
            self.steps * min(self.batch_size, len(images))
            + (len(images) + len(val) + 2 * self.mask_steps * split.images_for(4 * self.batch_size)) // 3
        )
        return Reading.of(self, value, target_class=shares.index(value), per_class=shares, image_passes=passes)

    def _trained(
        self,
        split: FeatureSplit,
        images: Tensor,
        features: Tensor,
        mask: Tensor,
        generator: torch.Generator,
        *,
        progress: bool,
    ) -> nn.Module:
        """The generator after its training."""
        network = _new_generator(images.shape[1], self.filters, generator).to(images.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        unit = features.square().mean().clamp(min=1e-12)
        bar = tqdm(range(self.steps), desc="trigger generator", unit="step", disable=None if progress else True)
        for _ in bar:
            batch = torch.randperm(len(images), generator=generator)[: self.batch_size].to(images.device)
            made = network(images[batch])
            image_change = (made - images[batch]).square().mean()
            moved = (split.features(made) - features[batch]).square() / unit
            kept, others = (part.square().mul(moved).mean() for part in (mask, 1 - mask))
            if image_change > self.image_bound or kept > self.feature_bound:
                loss = image_change
            else:
                loss = self.feature_weight * kept - others
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return network


class _Generator(TriggerNetwork):
    """Images (n, c, h, w) in [0, 1] with a drawn change."""

    def forward(self, images: Tensor) -> Tensor:
        return (images + super().forward(2 * images - 1)).clamp(0, 1)


def _new_generator(channels: int, filters: int, generator: torch.Generator) -> nn.Module:
    """A generator whose weights come from ``generator``; it changes images little, but must change them to learn."""
    with torch.device("meta"):  # the constructor draws weights; here it draws none
        network = _Generator(channels, channels, filters)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            bound = math.sqrt(6 / parameter[0].numel()) * (0.1 if name.startswith("leave") else 1)
            parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    return network


def shares_of_others(predicted: Tensor, labels: Tensor, classes: int) -> tuple[float, ...]:
    """For every class the share of the images with another label that are predicted as it; 0 where there are none."""
    hits = torch.bincount(predicted[predicted != labels], minlength=classes)
    others = len(labels) - torch.bincount(labels, minlength=classes)[:classes]
    return tuple((hits / others.clamp(min=1)).tolist())

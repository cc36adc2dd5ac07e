"""DeepInspect: without any clean image, a generator learns a change for every class, and the smallest is suspected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.reading import Reading
from backdoor_audit.search import anomaly

_NOISE = 32  # numbers that a change is made from, beside its class
_HIDDEN = 128
_ROUGHNESS = 0.1  # weight of the total variation of images that are made from scores


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepInspect:
    """How far the least change that a generator needs for one class lies below those of all classes.

    Chen et al., "DeepInspect", IJCAI 2019, section 3. First a substitute for clean images is made from the network alone:
    ``per_class`` images of every class, by ``made_in`` steps up its log-probability with a penalty on roughness (model
    inversion, Fredrikson et al., CCS 2015). Then a generator of changes, given noise and a class, learns the cross-entropy of
    that class plus ``size_weight`` times the mean size of the change. The statistic is the left-hand deviation of the smallest
    size: in scaled median absolute deviations of the sizes below the median, as in the paper, so that large ones do not hide
    it. The discriminator, which keeps changed images like others, is left out: there are no real images to learn it from.

    Needs gradients, no image and no label. Cost: ``classes * per_class * made_in`` image passes for the substitute and ``steps
    * batch_size`` for the generator: 23,000 for ten classes.
    """

    per_class: int = 20
    made_in: int = 50
    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 0.01
    size_weight: float = 30.0

    name = "deep_inspect"
    blind_spots = (
        "networks whose images cannot be made from their scores: the generator learns on what is not like any image",
        "triggers that work from some source classes only, or send every class elsewhere",
        "classes that are naturally easy to reach",
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
        """The deviation of the class with the least change, and that class; ``per_class`` are the deviations of all.

        No images are used. Inconclusive with too few classes, or if those below the median do not differ.
        """
        del opt, val
        made, passes = self._substitute(classifier, generator)
        sizes = self._sizes(classifier, made, generator, progress=progress)
        passes += self.steps * self.batch_size
        middle = anomaly.median(sizes)
        spread = anomaly.MAD_TO_DEVIATION * anomaly.median([middle - size for size in sizes if size <= middle])
        if len(sizes) < anomaly.MIN_CLASSES or not spread > 0:
            return Reading.of_outlier(self, [-size for size in sizes], image_passes=passes)
        left = [(middle - size) / spread for size in sizes]
        return Reading.of(self, max(left), target_class=left.index(max(left)), per_class=left, image_passes=passes)

    def _substitute(self, classifier: Classifier, generator: torch.Generator) -> tuple[Tensor, int]:
        """Images (classes * per_class, c, h, w) that the network is sure of, and the image passes."""
        device = classifier.device
        wanted = torch.arange(classifier.num_classes, device=device).repeat_interleave(self.per_class)
        images = torch.rand(len(wanted), *classifier.image_shape, generator=generator).to(device)
        for _ in range(self.made_in):
            budget.check()
            images.requires_grad_()
            rough = images.diff(dim=2).abs().sum() + images.diff(dim=3).abs().sum()
            sure = functional.cross_entropy(classifier(images), wanted, reduction="sum")
            (slope,) = torch.autograd.grad(sure + _ROUGHNESS * rough, images)
            images = (images.detach() - 0.05 * slope.sign()).clamp(0, 1)
        return images, len(wanted) * self.made_in

    def _sizes(
        self, classifier: Classifier, images: Tensor, generator: torch.Generator, *, progress: bool
    ) -> list[float]:
        """The mean absolute change of pixels that the generator ends with for every class."""
        device, classes = classifier.device, classifier.num_classes
        network = _Generator(classes, classifier.image_shape, generator).to(device)
        adam = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        for _ in tqdm(range(self.steps), desc="learning changes", unit="step", disable=None if progress else True):
            budget.check()
            chosen = torch.randint(len(images), (self.batch_size,), generator=generator).to(device)
            wanted = torch.randint(classes, (self.batch_size,), generator=generator).to(device)
            change = network(torch.randn(self.batch_size, _NOISE, generator=generator).to(device), wanted)
            loss = functional.cross_entropy(classifier((images[chosen] + change).clamp(0, 1)), wanted)
            adam.zero_grad()
            (loss + self.size_weight * change.abs().mean()).backward()
            adam.step()
        with torch.no_grad():
            noise = torch.randn(self.per_class, _NOISE, generator=generator).to(device)
            return [
                float(network(noise, torch.full((len(noise),), target, device=device)).abs().mean())
                for target in range(classes)
            ]


class _Generator(nn.Module):
    """Noise (n, `_NOISE`) and classes (n,) -> changes (n, c, h, w) in [-1, 1]."""

    def __init__(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        self.classes, self.shape = classes, shape
        size = shape[0] * shape[1] * shape[2]
        self.first = nn.utils.skip_init(nn.Linear, _NOISE + classes, _HIDDEN)
        self.last = nn.utils.skip_init(nn.Linear, _HIDDEN, size)
        with torch.no_grad():
            for layer in (self.first, self.last):
                bound = layer.in_features**-0.5
                layer.weight.copy_(bound * (2 * torch.rand(layer.weight.shape, generator=generator) - 1))
                layer.bias.zero_()

    def forward(self, noise: Tensor, wanted: Tensor) -> Tensor:
        given = torch.cat([noise, functional.one_hot(wanted, self.classes).float()], dim=1)
        return torch.tanh(self.last(torch.relu(self.first(given)))).view(-1, *self.shape)

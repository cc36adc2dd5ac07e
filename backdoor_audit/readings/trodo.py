"""TRODO: a backdoored network can be made confident about odd images by a step too small to see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.reading import Reading

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TRODO:
    """How much more confident an attack within ``eps`` makes the network about images that belong to no class.

    Assumes nothing about which class is sent where, so all-to-all attacks show as well: a backdoor is a short way to high
    confidence from anywhere, also from images just outside the data. Such images are made of ``images`` clean ones by
    cutting and pasting, turning and mixing (`odd_images`). Needs gradients, no labels, and clean models of equal training
    to compare with. Cost: ``(steps + 2/3) * images`` image passes, 4,267 by default. ``eps`` is the L-inf radius in
    pixel values of [0, 1].

    Mirzaei et al., "Scanning Trojaned Models Using Out-of-Distribution Samples", NeurIPS 2024, section 4. The paper's
    elastic deformation and its second data set of outliers are left out.
    """

    images: int = 400
    eps: float = 1 / 255
    steps: int = 10

    name = "trodo"
    blind_spots = (
        "networks of low accuracy, poor calibration or adversarial training, next to references that are not so",
        "triggers far from every small perturbation: large patches, strong warps",
        "it names no target class",
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
        """The rise of the mean highest probability, in [-1, 1]. It names no class and is never inconclusive.

        At most ``images`` of ``opt`` are used, drawn at random; ``val`` is not used.
        """
        del val
        chosen = torch.randperm(len(opt), generator=generator)[: self.images]
        odd = odd_images(opt.images[chosen], generator)
        before = confidence(classifier, odd)
        after = confidence(classifier, self._attacked(classifier, odd, generator, progress=progress))
        return Reading.of(self, float((after - before).mean()), image_passes=round(len(odd) * (self.steps + 2 / 3)))

    def _attacked(
        self, classifier: Classifier, images: Tensor, generator: torch.Generator, *, progress: bool
    ) -> Tensor:
        """Images within ``eps`` of these that the network is surer about: a random start, then signed gradient steps."""
        start = (2 * torch.rand(images.shape, generator=generator) - 1) * self.eps
        found = []
        bar = tqdm(
            zip(images.split(_BATCH), start.split(_BATCH), strict=True),
            total=-(-len(images) // _BATCH),
            desc="raising confidence",
            unit="batch",
            disable=None if progress else True,
        )
        for centre, offset in bar:
            batch = centre.to(classifier.device)
            moved = (batch + offset.to(classifier.device)).clamp(0, 1)
            low, high = (batch - self.eps).clamp(min=0), (batch + self.eps).clamp(max=1)
            for _ in range(self.steps):
                moved.requires_grad_()
                # the logarithm has the sign of the probability's gradient, and does not vanish with it
                surest = torch.log_softmax(classifier(moved), dim=1).amax(dim=1).sum()
                (gradient,) = torch.autograd.grad(surest, moved)
                step = 2.5 * self.eps / self.steps * gradient.sign()
                moved = torch.minimum(torch.maximum(moved.detach() + step, low), high)
            found.append(moved.cpu())
        return torch.cat(found)


def confidence(classifier: Classifier, images: Tensor) -> Tensor:
    """The highest probability of each image, (n,) in float64."""
    return torch.softmax(classifier.logits(images).double(), dim=1).amax(dim=1)


def odd_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w) near the data and yet not of it: a third each is pasted over, turned, mixed with another.

    Pasted: a rectangle from another image, a quarter to half of each side, put down anywhere. Turned: by 90 or 180
    degrees, by 180 if they are not square. Mixed: 30 to 70 % of another image. Which image gets what is drawn.
    """
    count, _, height, width = images.shape
    odd = images.clone()
    partner = torch.randperm(count, generator=generator).roll(1)
    pasted, turned, mixed = torch.randperm(count, generator=generator).tensor_split(3)
    for index in pasted.tolist():
        tall, wide = (_between(max(1, side // 4), max(1, side // 2), generator) for side in (height, width))
        (top, here), (left, there) = (
            (_between(0, side - part, generator), _between(0, side - part, generator))
            for side, part in ((height, tall), (width, wide))
        )
        odd[index, :, here : here + tall, there : there + wide] = images[
            partner[index], :, top : top + tall, left : left + wide
        ]
    quarters = (
        torch.randint(1, 3, (len(turned),), generator=generator) if height == width else torch.full(turned.shape, 2)
    )
    for quarter in quarters.unique().tolist():
        chosen = turned[quarters == quarter]
        odd[chosen] = images[chosen].rot90(quarter, dims=(2, 3))
    share = 0.3 + 0.4 * torch.rand(len(mixed), 1, 1, 1, generator=generator)
    odd[mixed] = images[mixed].lerp(images[partner[mixed]], share.to(images.dtype))
    return odd


def _between(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))

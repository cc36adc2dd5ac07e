"""ABS: a neuron is pushed until the scores follow; where one alone decides a class, a trigger for it is looked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.data.batches import draw
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.readings.reading import NO_FEATURE_LAYER, FeatureSplit, Reading
from backdoor_audit.triggers.trigger import Trigger

_LEVELS = 5  # a neuron is set to so many multiples of its layer's largest value
_SHRINKING = 0.7  # of the steps, in which the mask may still be larger than it ends
_OTHERS = 1e-4  # weight of the other neurons


@dataclass(frozen=True, slots=True, kw_only=True)
class ABS:
    """The success rate of the best trigger that was made for a neuron which alone raises a class.

    Artificial brain stimulation (Liu et al., CCS 2019, sections 4.2 and 4.3). Each channel of the feature layer is set to 1/5
    to 5/5 of ``push`` times the layer's largest value, on ``stimulated`` images of every class. A channel is compromised for
    the class that it raises most: by the least over images of other classes, less what it raises the second one by. Of the
    ``candidates`` strongest pairs of channel and class a mask and pattern are optimised for the activation of that channel
    against all others; the mask may cover the whole image at first and shrinks to ``area`` of it. The statistic is the largest
    success rate on held-out images of other classes (the paper's REASR), in [0, 1].

    Needs gradients, labels, and a feature layer that all scores come from. Cost: ``candidates * steps * batch_size`` image
    passes, and a few hundred for the stimulation: 16,500 for ten classes.
    """

    push: float = 8.0
    stimulated: int = 2
    candidates: int = 20
    steps: int = 100
    batch_size: int = 8
    learning_rate: float = 0.1
    area: float = 0.06

    name = "abs"
    blind_spots = (
        "triggers that several neurons answer together: one at a time is pushed",
        "neurons before the feature layer, which the paper pushes as well",
        "triggers larger than the area allowed here; warps and colour changes, for which the paper searches by filters",
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
        """The success rate, and the class that the trigger was made for; ``per_class`` the best of every class, 0 for none.

        Inconclusive without a feature layer, or where no image is of another class than the one that is raised.
        """
        split = FeatureSplit.of(classifier)
        if split is None:
            return Reading.without(self, NO_FEATURE_LAYER)
        first = torch.cat(
            [(opt.labels == label).nonzero().flatten()[: self.stimulated] for label in opt.labels.unique()]
        )
        features, labels = split.clean_features(opt.images[first]), opt.labels[first]
        raised = self._raised(split, features, labels)
        channels, classes = raised.shape
        best = raised.flatten().topk(min(self.candidates, channels * classes))
        pairs = best.indices[torch.isfinite(best.values)]
        neurons, targets = (pairs // classes).cpu(), (pairs % classes).cpu()
        eligible = opt.labels.unsqueeze(0) != targets.unsqueeze(1)
        if not len(targets) or not eligible.any(dim=1).all():
            return Reading.without(self, "no image is of another class than those that a neuron raises")
        passes = len(features) * (1 + channels * _LEVELS) // 3 if split.images_for(2) > 1 else len(features)
        mask, pattern = self._inverted(split, opt, neurons, eligible, generator, progress=progress)
        passes += len(targets) * self.steps * min(self.batch_size, len(opt))
        per_class = [0.0] * classifier.num_classes
        for row, target in enumerate(targets.tolist()):
            led = attack_success_rate(classifier, val.images, val.labels, Trigger(mask[row], pattern[row], target))
            passes += led.n // 3
            per_class[target] = max(per_class[target], led)
        value = max(per_class)
        return Reading.of(self, value, target_class=per_class.index(value), per_class=per_class, image_passes=passes)

    def _raised(self, split: FeatureSplit, features: Tensor, labels: Tensor) -> Tensor:
        """By how much each channel alone raises its class above the next one, (channels, classes); -inf for other classes."""
        largest = float(features.amax())
        base = split.logits(features)
        found = []
        for channel in range(features.shape[1]):
            budget.check()
            reached = torch.full_like(base, -torch.inf)
            for level in range(1, _LEVELS + 1):
                pushed = features.clone()
                pushed[:, channel] = self.push * largest * level / _LEVELS
                reached = torch.maximum(reached, split.logits(pushed) - base)
            own = functional.one_hot(labels.to(base.device), base.shape[1]).bool()
            least = reached.masked_fill(own, torch.inf).amin(dim=0)
            least = torch.where(torch.isinf(least), -torch.inf, least)
            top = least.topk(min(2, len(least)))
            gap = float(top.values[0] - top.values[-1])
            found.append(torch.full_like(least, -torch.inf).index_fill(0, top.indices[:1], gap))
        return torch.stack(found)

    def _inverted(
        self,
        split: FeatureSplit,
        opt: CleanSet,
        neurons: Tensor,
        eligible: Tensor,
        generator: torch.Generator,
        *,
        progress: bool,
    ) -> tuple[Tensor, Tensor]:
        """Masks (rows, 1, h, w) and patterns (rows, c, h, w) that light up these channels of the feature layer and no others."""
        device = split.classifier.device
        channels, height, width = split.classifier.image_shape
        rows, images = len(neurons), opt.images.to(device)
        free = [
            torch.randn(rows, maps, height, width, generator=generator).to(device).sub(shift).requires_grad_()
            for maps, shift in ((1, 1.0), (channels, 0.0))
        ]
        adam = torch.optim.Adam(free, lr=self.learning_rate)
        for step in tqdm(range(self.steps), desc="inverting neurons", unit="step", disable=None if progress else True):
            budget.check()
            batch = images[draw(eligible, self.batch_size, generator)]
            allowed = max(self.area, 1 - (1 - self.area) * step / (_SHRINKING * self.steps))
            mask, pattern = _within(torch.sigmoid(free[0]), allowed), torch.sigmoid(free[1])
            stamped = torch.lerp(batch, pattern.unsqueeze(1), mask.unsqueeze(1))
            activations = split.features(stamped.flatten(0, 1)).mean(dim=(2, 3)).view(rows, -1, split.feature_shape[0])
            mine = activations.gather(2, neurons.to(device).view(-1, 1, 1).expand(-1, activations.shape[1], 1)).mean()
            loss = rows * (_OTHERS * activations.mean() - mine)
            for part, slope in zip(free, torch.autograd.grad(loss, free), strict=True):
                part.grad = slope
            adam.step()
        mask, pattern = (torch.sigmoid(part.detach()) for part in free)
        return _within(mask, self.area), pattern


def _within(masks: Tensor, area: float) -> Tensor:
    """Masks (n, 1, h, w) in which only the strongest pixels are left, as many as the area (a share of the image) allows."""
    flat = masks.flatten(1)
    kept = max(1, round(area * flat.shape[1]))
    least = flat.topk(kept, dim=1).values[:, -1:]
    return torch.where(flat >= least, flat, 0.0).view_as(masks)

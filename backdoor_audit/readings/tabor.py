"""TABOR: triggers are inverted under penalties for what no trigger looks like, and judged by how good they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.data.batches import draw
from backdoor_audit.model.classifier import Classifier, autocast
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.readings.reading import Reading
from backdoor_audit.search.cost_controller import CostController
from backdoor_audit.search.row_adam import RowAdam
from backdoor_audit.triggers.trigger import Trigger

_LEAST = 1e-3  # whose logarithm is still taken


@dataclass(frozen=True, slots=True, kw_only=True)
class TABOR:
    """How far the best inverted trigger stands out: small, in one piece, and enough to lead anything to its class.

    Neural Cleanse with four more terms (Guo et al., arXiv 1908.01763, section 4.2): the elastic net of the mask and of the
    pattern outside of it, the total variation of both, the cross-entropy of the true label with the masked place blacked out,
    and that of the target for the trigger alone on black. The sum of the first two has the cost of Neural Cleanse's controller,
    the last two the weights ``uncovered`` and ``alone``; the relative weights are those of public code, where the paper tunes
    them for each model.

    The badness of a trigger is in the manner of section 4.3: ``log(area) + log(roughness) - log(success) - log(success
    alone)``, with the area of the mask as a share of the image and its roughness as a share of all pairs of neighbours. The
    statistic is how far the best class lies below the median of all, in scaled median absolute deviations.

    Needs gradients and labels. Cost: ``classes * steps * (2 * batch_size + 1)`` image passes at most, 33,000 for ten classes.
    """

    steps: int = 100
    batch_size: int = 16
    learning_rate: float = 0.1
    outside: float = 0.01
    rough: float = 0.1
    uncovered: float = 0.01
    alone: float = 0.01

    name = "tabor"
    blind_spots = (
        "triggers over the whole image: what is small and in one piece is preferred",
        "triggers that work from some source classes only, or send every class elsewhere",
        "classes that a small natural feature leads to",
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
        """The deviation of the class with the best trigger, and that class; ``per_class`` are the deviations of all.

        Inconclusive if too few classes differ, or a class has no images of other classes.
        """
        rows = torch.arange(classifier.num_classes)
        others = opt.labels.unsqueeze(0) != rows.unsqueeze(1)
        if not others.any(dim=1).all():
            return Reading.without(self, "all clean images are of one class")
        masks, patterns, passes = self._inverted(classifier, opt, others, generator, progress=progress)
        badness = [
            self._badness(classifier, val, masks[row], patterns[row], row) for row in range(classifier.num_classes)
        ]
        passes += classifier.num_classes * (len(val) + 1) // 3
        return Reading.of_outlier(self, [-value for value in badness], image_passes=passes)

    def _inverted(
        self, classifier: Classifier, opt: CleanSet, others: Tensor, generator: torch.Generator, *, progress: bool
    ) -> tuple[Tensor, Tensor, int]:
        """Masks (classes, 1, h, w) and patterns (classes, c, h, w) of the best triggers, and the image passes."""
        count, device = classifier.num_classes, classifier.device
        channels, height, width = classifier.image_shape
        free = {
            name: torch.randn(count, maps, height, width, generator=generator).to(device)
            for name, maps in (("mask", 1), ("pattern", channels))
        }
        best = {name: tensor.clone() for name, tensor in free.items()}
        adam = RowAdam(free, learning_rate=self.learning_rate)
        controller = CostController(
            count,
            initial=1e-3,
            multiplier=2.0,
            patience=5,
            stop_patience=self.steps,
            success_threshold=0.99,
            confirmations=3,
        )
        rows, images, passes = torch.arange(count), opt.images.to(device), 0
        for _ in tqdm(range(self.steps), desc="inverting", unit="step", disable=None if progress else True):
            budget.check()
            batches = draw(others, self.batch_size, generator)
            works, size, gradients = self._slopes(
                classifier, images[batches], opt.labels[batches].to(device), adam.parameters, controller.cost.to(device)
            )
            improved, _ = controller.update(rows, works, size)
            for name, tensor in adam.parameters.items():
                best[name][improved] = tensor[improved]
            adam.step(gradients, rows)
            passes += 2 * batches.numel() + count
        never = torch.isinf(controller.best_size)
        for name, tensor in adam.parameters.items():
            best[name][never] = tensor[never]
        return torch.sigmoid(best["mask"]), torch.sigmoid(best["pattern"]), passes

    def _slopes(
        self, classifier: Classifier, images: Tensor, labels: Tensor, free: dict[str, Tensor], cost: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Success rate and size of every class's trigger, on the CPU, and the gradients of its parameters.

        Images are (classes, batch, c, h, w), their labels (classes, batch).
        """
        asked = {name: tensor.detach().requires_grad_() for name, tensor in free.items()}
        mask, pattern = torch.sigmoid(asked["mask"]), torch.sigmoid(asked["pattern"])
        stamped = torch.lerp(images, pattern.unsqueeze(1), mask.unsqueeze(1))
        bare = images * (1 - mask.unsqueeze(1))
        targets = torch.arange(len(images), device=images.device)
        each = targets.repeat_interleave(images.shape[1])
        with autocast(classifier.device, classifier.module):
            logits = classifier(torch.cat([stamped.flatten(0, 1), bare.flatten(0, 1), mask * pattern])).float()
        led, left, lone = logits.split([len(each), len(each), len(targets)])
        outside = (1 - mask) * pattern
        size = _elastic(mask) + self.outside * _elastic(outside) + self.rough * (_variation(mask) + _variation(outside))
        loss = functional.cross_entropy(led, each, reduction="sum") / images.shape[1] + (cost * size).sum()
        loss += self.uncovered * functional.cross_entropy(left, labels.flatten(), reduction="sum") / images.shape[1]
        loss += self.alone * functional.cross_entropy(lone, targets, reduction="sum")
        gradients = torch.autograd.grad(loss, list(asked.values()))
        works = (led.argmax(dim=1) == each).view(len(images), -1).float().mean(dim=1)
        return works.cpu(), size.detach().cpu(), dict(zip(asked, gradients, strict=True))

    def _badness(self, classifier: Classifier, val: CleanSet, mask: Tensor, pattern: Tensor, target: int) -> float:
        """What speaks against a trigger (mask (1, h, w), pattern (c, h, w)): lower is better."""
        _, height, width = mask.shape
        pairs = height * (width - 1) + width * (height - 1)
        area, roughness = float(mask.mean()), float(_variation(mask.unsqueeze(0))) / pairs
        success = attack_success_rate(classifier, val.images, val.labels, Trigger(mask, pattern, target))
        alone = float(classifier.logits((mask * pattern).unsqueeze(0)).softmax(dim=1)[0, target])
        bad, good = (
            sum(math.log(max(_LEAST, share)) for share in shares) for shares in ((area, roughness), (success, alone))
        )
        return bad - good


def _elastic(values: Tensor) -> Tensor:
    """The sum of absolute values and of squares, (n,), of values (n, c, h, w)."""
    return (values.abs() + values.square()).flatten(1).sum(dim=1)


def _variation(values: Tensor) -> Tensor:
    """The sum of absolute differences of neighbours, (n,), of values (n, c, h, w)."""
    return values.diff(dim=2).abs().flatten(1).sum(dim=1) + values.diff(dim=3).abs().flatten(1).sum(dim=1)

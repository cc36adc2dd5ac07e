"""MM-BD: the margin by which a class can win is far larger for the target of a backdoor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.reading import NO_FEATURE_LAYER, FeatureSplit, Reading, feature_masks

_MIN_CLASSES = 8  # fewer values do not tell the shape of a distribution
_CHUNK = 512
"""Images in one pass."""
_MASK_STEPS, _MASK_RATE = 200, 0.1
_PENALTY, _CALM, _CALM_FROM = 400.0, 0.01, 10
"""Weight of the cosine in CSO; the mean cosine below which a class is released; the step from which that is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MMBD:
    """How improbable the largest margin of all classes is, under a Gamma distribution fitted to those of the others.

    Assumes one target, or few, whose logit a trigger drives beyond what any natural image does. For each class,
    ``images_per_class`` images start uniform in [0, 1] and climb the margin ``logit - largest other logit`` with plain
    gradient steps, pixels clamped; a class stops when its summed margin changes by less than ``tolerance``, relatively.
    The statistic of a class is the largest margin of its images. Needs gradients and logits, no clean image, no label, and
    at least 8 classes. Wang et al., "MM-BD", IEEE S&P 2024, section III; its third Gamma parameter, the location, is
    unstable with so few values and is fixed (`gamma_surprise`).

    As only the largest margin counts, all but the ``finalists`` leading images of a class are dropped after
    ``screening_steps``; the paper has no such step, ``finalists=images_per_class`` is the paper. Cost: ``classes *
    (screening_steps * images_per_class + (steps - screening_steps) * finalists)`` image passes at most, 13,050 for ten
    classes by default instead of 90,000.

    ``orthogonal`` adds the term of CSO (Wang et al., arXiv 2512.08129, 2025): the features of each image must have nothing
    in common with what a learned mask keeps of a clean image of the class. It needs labels, a feature layer, takes all
    steps with all images, at a tenth of ``learning_rate`` until the class's cosine is gone; the paper has 10 images per
    class and 500 steps. Its masks learn for 200 steps at 0.1: at the paper's 20 steps of 0.01 they stay random.
    """

    images_per_class: int = 30
    steps: int = 300
    learning_rate: float = 0.01
    tolerance: float = 1e-5
    screening_steps: int = 15
    finalists: int = 3
    orthogonal: bool = False
    momentum: float = 0.2

    name = "mm_bd"
    blind_spots = (
        "attacks that send every class elsewhere (all-to-all): no class stands out",
        "triggers that work from some source classes only",
        "triggers for more than a few classes at once",
        "classes that are naturally easy to reach: they look like targets",
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
        """``-log10(p)`` of the class with the largest margin, and that class; ``per_class`` are the margins (logits).

        Images are needed with ``orthogonal`` only, and from ``opt``; ``momentum`` counts there only. Inconclusive with
        fewer than 8 classes, or if the margins of the others are equal; with ``orthogonal`` also
        if there is no feature layer that all scores come from, or a class has no clean image.
        """
        del val
        shape = (classifier.num_classes, self.images_per_class, *classifier.image_shape)
        bar = tqdm(total=self.steps, desc="maximum margins", unit="step", disable=None if progress else True)
        with bar:
            if self.orthogonal:
                split = FeatureSplit.of(classifier)
                if split is None:
                    return Reading.without(self, NO_FEATURE_LAYER)
                missing = sorted(set(range(classifier.num_classes)) - set(opt.labels.tolist()))
                if missing:
                    return Reading.without(
                        self, f"class {missing[0]} has no clean image, which the orthogonal term needs"
                    )
                reference, passes = self._references(split, opt, generator)
                images = torch.rand(shape, generator=generator).to(classifier.device)
                images = self._climb_apart(split, images, reference, bar)
                passes += self.steps * images[:, :, 0, 0, 0].numel()
            else:
                images = torch.rand(shape, generator=generator).to(classifier.device)
                images, passes = self._climb(classifier, images, bar)
        targets = torch.arange(len(images), device=images.device).repeat_interleave(images.shape[1])
        flat = images.flatten(0, 1)
        margins = margin(classifier.logits(flat), targets).view(images.shape[:2]).amax(dim=1).tolist()
        return self._judged(margins, passes + len(flat) // 3)

    def _judged(self, margins: list[float], passes: int) -> Reading:
        try:
            value = gamma_surprise(margins)
        except DegenerateScoresError as error:
            return Reading.without(self, str(error), per_class=margins, image_passes=passes)
        target_class = max(range(len(margins)), key=margins.__getitem__)
        return Reading.of(self, value, target_class=target_class, per_class=margins, image_passes=passes)

    def _climb(self, classifier: Classifier, images: Tensor, bar: tqdm[None]) -> tuple[Tensor, int]:
        """Images (classes, finalists, c, h, w) at the end of their climb, and the image passes that it took."""
        margins = torch.full(images.shape[:2], -torch.inf, device=images.device)
        before = margins.sum(dim=1)
        active = torch.arange(len(images), device=images.device)
        passes = 0
        for step in range(self.steps):
            count = images.shape[1]
            if step == self.screening_steps and self.finalists < count:
                best = margins.topk(self.finalists, dim=1).indices
                rows = torch.arange(len(images), device=images.device).unsqueeze(1)
                images, margins = images[rows, best], margins[rows, best]
                before, count = margins.sum(dim=1), self.finalists
            reached, gradient = _gradients(images[active], active, lambda batch: (classifier(batch),), _plain)
            passes += len(active) * count
            images[active] = (images[active] + self.learning_rate * gradient).clamp(0, 1)
            margins[active] = reached
            total = reached.sum(dim=1)
            # before is -inf at first
            moving = ~((total - before[active]).abs() < self.tolerance * before[active].abs())
            before[active] = total
            active = active[moving]
            bar.update()
            if not len(active):
                break
        if self.finalists < images.shape[1]:  # all classes stopped before the screening
            images = images[
                torch.arange(len(images), device=images.device).unsqueeze(1),
                margins.topk(self.finalists, dim=1).indices,
            ]
        return images, passes

    def _references(self, split: FeatureSplit, opt: CleanSet, generator: torch.Generator) -> tuple[Tensor, int]:
        """What the mask of a class keeps of its clean images' features, (classes, images, values), and the image passes."""
        order = torch.randperm(len(opt), generator=generator)
        paired, labels = [], opt.labels[order]
        for label in range(split.classifier.num_classes):
            members = order[labels == label]
            paired.append(members[torch.arange(self.images_per_class) % len(members)])
        chosen, rows = torch.cat(paired).unique(return_inverse=True)
        features, classes = split.clean_features(opt.images[chosen]), opt.labels[chosen].to(split.classifier.device)
        masks = feature_masks(
            split,
            features,
            classes,
            classes,
            steps=_MASK_STEPS,
            learning_rate=_MASK_RATE,
            batch_size=len(features),
            generator=generator,
        )
        kept = (masks[classes] * features).flatten(1)[rows.to(features.device)]
        passes = (len(chosen) + 2 * _MASK_STEPS * split.images_for(len(chosen))) // 3
        return kept.view(len(paired), self.images_per_class, -1), passes

    def _climb_apart(self, split: FeatureSplit, images: Tensor, reference: Tensor, bar: tqdm[None]) -> Tensor:
        """Images (classes, n, c, h, w) whose margin is large though their features have nothing of their class's own."""
        classes = torch.arange(len(images), device=images.device)
        penalty = torch.full((len(images),), _PENALTY, device=images.device)
        rate = torch.full((len(images), 1, 1, 1, 1), self.learning_rate / 10, device=images.device)
        released = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        velocity = torch.zeros_like(images)
        flat_reference = reference.flatten(0, 1)
        cosines: list[Tensor] = []

        def apart(part: slice, targets: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
            features, logits = outputs
            alike = functional.cosine_similarity(features.flatten(1), flat_reference[part]).relu()
            cosines.append(alike.detach())
            return margin(logits, targets) - penalty[targets] * alike

        for step in range(self.steps):
            cosines.clear()
            _, gradient = _gradients(images, classes, split.both, apart)
            velocity = self.momentum * velocity + gradient
            images = (images + rate * velocity).clamp(0, 1)
            calm = torch.cat(cosines).view(images.shape[:2]).mean(dim=1) < _CALM
            now = calm & ~released & (step >= _CALM_FROM)
            rate[now] *= 10
            penalty[now] /= 10
            released |= now
            bar.update()
        return images


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """``logit of the target - largest other logit`` of each row, (n,)."""
    own = logits.gather(1, targets.unsqueeze(1))
    return (own - logits.scatter(1, targets.unsqueeze(1), -torch.inf).amax(dim=1, keepdim=True)).squeeze(1)


def gamma_surprise(margins: Sequence[float]) -> float:
    """``-log10(p)``: p is the chance that the largest of so many Gamma values reaches the largest of these.

    The Gamma distribution is fitted to all but the largest. Its location is 0; where a margin is not positive it is the
    lowest of the others less ``(mean - lowest) / (number - 1)``, the unbiased estimate for exponential values. At most 307,
    where the tail probability leaves the range of float64. Raises `DegenerateScoresError` for fewer than 8 values, for one
    that is not finite, or if the others are equal.
    """
    if len(margins) < _MIN_CLASSES:
        raise DegenerateScoresError(
            f"{len(margins)} classes have a margin; a distribution can be fitted from {_MIN_CLASSES} classes on"
        )
    if not all(math.isfinite(value) for value in margins):
        raise DegenerateScoresError("a margin is not finite")
    *others, top = sorted(margins)
    lowest, mean = others[0], sum(others) / len(others)
    location = 0.0 if lowest > 0 else lowest - (mean - lowest) / (len(others) - 1)
    shape, scale = gamma_fit([value - location for value in others])
    tail = torch.special.gammaincc(_double(shape), _double((top - location) / scale))
    p_value = -torch.expm1(len(margins) * torch.log1p(-tail.clamp(min=torch.finfo(torch.float64).tiny)))
    return max(0.0, -math.log10(float(p_value)))


def gamma_fit(values: Sequence[float]) -> tuple[float, float]:
    """Shape and scale of the Gamma distribution, location 0, that is likeliest for positive values.

    Newton's method on ``log(shape) - digamma(shape) = log(mean) - mean(log)`` (Minka, "Estimating a Gamma distribution",
    2002). Raises `DegenerateScoresError` for values without spread.
    """
    array = torch.tensor(values, dtype=torch.float64)
    mean = array.mean()
    gap = float(mean.log() - array.log().mean())
    if not gap > 1e-10:
        raise DegenerateScoresError("the margins of the other classes are equal, so no distribution can be fitted")
    shape = _double((3 - gap + math.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap))
    for _ in range(50):
        error = shape.log() - torch.special.digamma(shape) - gap
        step = error / (1 / shape - torch.special.polygamma(1, shape))
        shape = torch.where(step < shape, shape - step, shape / 2)
        if abs(float(step)) <= 1e-12 * float(shape):
            break
    return float(shape), float(mean / shape)


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


Objective = Callable[[slice, Tensor, tuple[Tensor, ...]], Tensor]
"""From a slice of the flat images, their classes (n,) and what the network gave for them to what shall grow, (n,)."""


def _plain(_part: slice, targets: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
    return margin(outputs[-1], targets)


def _gradients(
    images: Tensor, classes: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]], objective: Objective
) -> tuple[Tensor, Tensor]:
    """The objective (classes, n) of images (classes, n, c, h, w), and its gradient for each image by itself."""
    flat, targets = images.flatten(0, 1), classes.repeat_interleave(images.shape[1])
    values, gradients = [], []
    for start in range(0, len(flat), _CHUNK):
        part = slice(start, start + _CHUNK)
        batch = flat[part].detach().requires_grad_()
        value = objective(part, targets[part], run(batch))
        gradients.append(torch.autograd.grad(value.sum(), batch)[0])
        values.append(value.detach())
    return torch.cat(values).view(images.shape[:2]), torch.cat(gradients).view(images.shape)

"""AEVA: from answers alone, without scores: towards the target of a patch, the nearest adversarial change sits in few pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.reading import Reading

_HALVINGS = 8  # of the way between an image and its counterpart, until the boundary is found
_PEAK = 2  # pixels that hold most of a change


@dataclass(frozen=True, slots=True, kw_only=True)
class AEVA:
    """How concentrated the nearest adversarial changes towards a class are, against those towards the others.

    Guo et al., "AEVA", ICLR 2022, section 4; for models that tell their answer alone. For every ordered pair of classes,
    ``images`` of the source are led to the target by HopSkipJump (Chen et al., IEEE S&P 2020, algorithm 2, L2), which begins at
    an image of the target and asks for answers only. The peak of a pair is the largest share, over its images, of the absolute
    change that lies in the two pixels that change most; the sum over sources is the adversarial peak of the target. The
    statistic is how far the largest lies above the median, in scaled median absolute deviations; the paper flags above 4.

    Needs labels, no gradients and no scores. The paper asks 40 images per pair up to 30,000 questions each; here it is
    ``images`` and ``rounds * (directions + 2 * halvings)``. Cost, as a forward pass counts a third: 25,000 image passes for ten
    classes.
    """

    images: int = 2
    rounds: int = 6
    directions: int = 50

    name = "aeva"
    blind_spots = (
        "triggers over the whole image: the nearest change towards their target is spread out as well",
        "large patches and small images: few pixels stand out less",
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
        """The deviation of the class with the largest peak, and that class; ``per_class`` are the deviations of all.

        Images are those of ``opt`` that the network is right about; ``val`` is not used. Inconclusive with too few classes, or
        if one of them has no such image.
        """
        del val
        classes = classifier.num_classes
        right = classifier.predict(opt.images).cpu() == opt.labels
        whose = [(right & (opt.labels == label)).nonzero().flatten()[: self.images] for label in range(classes)]
        if poor := [label for label, found in enumerate(whose) if not len(found)]:
            return Reading.without(self, f"class {poor[0]} has no clean image that the network is right about")
        peaks, asked = [], len(opt)
        for target in tqdm(range(classes), desc="asking for answers", disable=None if progress else True):
            starts = torch.cat([_turns(rows, self.images) for source, rows in enumerate(whose) if source != target])
            ends = _turns(whose[target], len(starts))
            images = opt.images[starts]
            found, questions = self._led(classifier, images, opt.images[ends], target, generator)
            change = (found - images).abs().sum(dim=1).flatten(1)
            share = change.topk(min(_PEAK, change.shape[1]), dim=1).values.sum(dim=1)
            share /= change.sum(dim=1).clamp_min(1e-12)
            peaks.append(float(share.view(-1, self.images).amax(dim=1).sum()))
            asked += questions
        return Reading.of_outlier(self, peaks, image_passes=asked // 3)

    def _led(
        self,
        classifier: Classifier,
        images: Tensor,
        beyond: Tensor,
        target: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, int]:
        """Images (n, c, h, w) near these that get the target, starting from others that do, and the number of questions."""
        asked = 0

        def obeys(tried: Tensor) -> Tensor:
            nonlocal asked
            asked += len(tried)
            return classifier.predict(tried).cpu() == target

        def on_boundary(reached: Tensor) -> Tensor:
            near, far = torch.zeros(len(images)), torch.ones(len(images))
            for _ in range(_HALVINGS):
                middle = (near + far) / 2
                there = obeys(torch.lerp(images, reached, _each(middle)))
                near, far = torch.where(there, near, middle), torch.where(there, middle, far)
            return torch.lerp(images, reached, _each(far))

        reached, size = on_boundary(beyond), images[0].numel()
        for step in range(self.rounds):
            budget.check()
            distance = (reached - images).flatten(1).norm(dim=1)
            directions = torch.randn(len(images), self.directions, *images.shape[1:], generator=generator)
            directions /= directions.flatten(2).norm(dim=2).view(*directions.shape[:2], 1, 1, 1)
            length = _each(distance / size**0.5).unsqueeze(1)
            signs = 2.0 * obeys((reached.unsqueeze(1) + length * directions).clamp(0, 1).flatten(0, 1)).float() - 1
            signs = signs.view(len(images), -1)
            mean = signs.mean(dim=1, keepdim=True)
            weights = torch.where(
                mean.abs() < 1, signs - mean, signs
            )  # of directions that all agree nothing would be left
            way = (weights.view(*weights.shape, 1, 1, 1) * directions).mean(dim=1)
            way /= _each(way.flatten(1).norm(dim=1).clamp_min(1e-12))
            stride = distance / (step + 1) ** 0.5
            moved = (reached + _each(stride) * way).clamp(0, 1)
            for _ in range(_HALVINGS):
                there = obeys(moved)
                if there.all():
                    break
                stride = torch.where(there, stride, stride / 2)
                moved = torch.where(_each(there), moved, (reached + _each(stride) * way).clamp(0, 1))
            moved = torch.where(_each(obeys(moved)), moved, reached)
            reached = on_boundary(moved)
        return reached, asked


def _each(values: Tensor) -> Tensor:
    """One value for every image, (n,) -> (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def _turns(rows: Tensor, count: int) -> Tensor:
    """So many of these rows, in turn."""
    return rows[torch.arange(count) % len(rows)]

"""What holds exactly, up to rounding, for any classifier and any detector: cheap, and a hint at odd code where it fails.

Nothing is searched for here, so nothing has to converge: two computations are compared, and steps in `Relabelling` are as few in
the one as in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.properties.allowance import NaturalRate, no_twins
from backdoor_audit.properties.corpus import Counterexample
from backdoor_audit.properties.outcome import Outcome
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.perturbations import Additive
from backdoor_audit.triggers.written import (
    Blend,
    Change,
    DrawnTrigger,
    ImageShape,
    Numbers,
    Patch,
    Quantisation,
    SmoothWarp,
)

STATISTIC = "largest_difference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelling:
    """Other names for the classes rename what a detector finds, and change nothing else.

    The outputs of a copy are permuted, and so are labels and goals; the margins that a few steps of universal perturbation reach
    (the statistic of `UniversalPerturbation`, with the same random numbers) must be the same, class by class, in units of the
    model's clean margin. Both runs compute the same sums in another order, at most in bfloat16 with its 8 bits, so ``limit``
    is far above rounding, and far below the differences of 0.1 and more between the classes of a model.
    """

    limit: float = 0.02
    images: int = 64
    steps: int = 2

    name = "relabelling_permutes_the_result"
    needs_twins = False

    def __call__(
        self,
        classifier: Classifier,
        opt: CleanSet,
        val: CleanSet,
        *,
        generator: torch.Generator,
        natural: NaturalRate = no_twins,
        kept: Sequence[Counterexample] = (),
    ) -> Outcome:
        """Steer the model and its relabelled copy alike. The classifier is not changed."""
        del natural, kept
        classes = classifier.num_classes
        order = torch.randperm(classes, generator=generator)  # new label of each class
        random_seed = int(torch.randint(2**31, (1,), generator=generator))
        probe = Steering(family=Additive(), steps=self.steps, batch_size=4, measured=8)
        searched, measured = opt.sample(self.images, seed=0), val.sample(self.images, seed=0)
        found = []
        try:
            for network, names in ((classifier, torch.arange(classes)), (_relabelled(classifier, order), order)):
                here, there = (replace(part, labels=names[part.labels]) for part in (searched, measured))
                goals = [AllToOne(target) for target in names.tolist()]
                own = torch.Generator().manual_seed(random_seed)
                found.append(probe(network, here, there, goals, generator=own).margins)
        except DegenerateScoresError as error:
            return _outcome(self, None, str(error))
        difference = float((found[0] - found[1]).abs().max())
        told = (
            f"margins of {classes} classes and of the same classes under other names differ by {difference:.1g} at most"
        )
        return _outcome(self, difference, told, tried=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOpTrigger:
    """A trigger that adds nothing changes nothing: no score moves by more than ``limit`` of the usual margin between two classes.

    Triggers of every kind at strength 0. A warp interpolates even then, with the rounding of 32-bit floats.
    """

    limit: float = 0.01
    images: int = 32

    name = "a_no_op_trigger_changes_nothing"
    needs_twins = False

    def __call__(
        self,
        classifier: Classifier,
        opt: CleanSet,
        val: CleanSet,
        *,
        generator: torch.Generator,
        natural: NaturalRate = no_twins,
        kept: Sequence[Counterexample] = (),
    ) -> Outcome:
        """Stamp a few held-out images with nothing. The classifier is not changed."""
        del opt, generator, natural, kept
        some = val.sample(self.images, seed=0)
        scores, difference, worst = classifier.logits(some.images), 0.0, ""
        for trigger in no_op_triggers(classifier.image_shape):
            moved = _moved(scores, classifier.logits(trigger.stamp(some.images)))
            difference, worst = max((difference, worst), (moved, trigger.kind))
        told = f"with triggers of strength 0, scores move by {difference:.1g} of the usual margin at most"
        tried = len(list(no_op_triggers(classifier.image_shape)))
        return _outcome(self, difference, f"{told} ({worst})" if worst else told, tried=tried)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAndOrder:
    """What the model says of an image does not depend on the images beside it, nor on how many there are.

    Held-out images are scored in one batch, one by one, in batches of 7, and in the opposite order; no score may differ by more
    than ``limit`` of the usual margin between two classes. Libraries choose other algorithms for other batch sizes, which changes
    sums of 32-bit floats in the last digits; batch norm left in training mode moves scores by a multiple of the limit.
    """

    limit: float = 0.01
    images: int = 32

    name = "batches_and_order_do_not_matter"
    needs_twins = False

    def __call__(
        self,
        classifier: Classifier,
        opt: CleanSet,
        val: CleanSet,
        *,
        generator: torch.Generator,
        natural: NaturalRate = no_twins,
        kept: Sequence[Counterexample] = (),
    ) -> Outcome:
        """Score the same held-out images again and again. The classifier is not changed."""
        del opt, generator, natural, kept
        images = val.sample(self.images, seed=0).images
        scores = classifier.logits(images)
        ways = {
            "one by one": torch.cat([classifier.logits(part) for part in images.split(1)]),
            "in batches of 7": torch.cat([classifier.logits(part) for part in images.split(7)]),
            "in the opposite order": classifier.logits(images.flip(0)).flip(0),
        }
        moved = {way: _moved(scores, other) for way, other in ways.items()}
        worst = max(moved, key=moved.__getitem__)
        told = f"scores of the same images {worst} differ by {moved[worst]:.1g} of the usual margin at most"
        return _outcome(self, moved[worst], told, tried=len(ways))


def _outcome(
    asked: Relabelling | NoOpTrigger | BatchAndOrder, value: float | None, reason: str, *, tried: int = 0
) -> Outcome:
    return Outcome(
        name=asked.name,
        statistic=STATISTIC,
        value=value,
        limit=asked.limit,
        reason=reason,
        settings=repr(asked),
        tried=tried,
    )


def no_op_triggers(image_shape: ImageShape) -> Iterator[DrawnTrigger]:
    """One trigger of strength 0 of every kind that has such a form."""
    channels, height, width = image_shape
    nothing, white = Numbers((channels, 1, 1), (0,) * channels), Numbers((channels, 1, 1), (255,) * channels)
    yield Patch(colours=white, top=height - 1, left=width - 1, opacity=0)
    yield Blend(picture=white, opacity=0)
    yield Change(levels=nothing)
    yield SmoothWarp(flow=Numbers((2, 1, 1), (0, 0)))
    yield Quantisation(step=0)


class _Relabelled(nn.Module):
    """A network whose class k has another number."""

    def __init__(self, classifier: Classifier, order: Tensor) -> None:
        super().__init__()
        self.classifier, self.module = classifier, classifier.module
        self.register_buffer("places", order.argsort())

    def forward(self, images: Tensor) -> Tensor:
        """Logits in the new order, of pixels."""
        places = self.get_buffer("places")
        return self.classifier(images)[:, places]


def _relabelled(classifier: Classifier, order: Tensor) -> Classifier:
    """A classifier that calls class k ``order[k]``."""
    copy = classifier.copy()
    return Classifier.wrap(
        _Relabelled(copy, order),
        image_shape=classifier.image_shape,
        architecture=classifier.architecture,
        device=classifier.device,
    )


def _moved(scores: Tensor, others: Tensor) -> float:
    """The largest difference of two sets of scores (n, classes), in units of the median margin between the best two classes."""
    best = scores.topk(2, dim=1).values
    margin = (best[:, 0] - best[:, 1]).quantile(0.5).clamp_min(1e-6)
    return float((scores - others).abs().max() / margin)

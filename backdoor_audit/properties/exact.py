"""What holds exactly, up to rounding, for any classifier and any detector: cheap, and a hint at odd code where it fails.

Nothing is searched for here, so nothing has to converge: two computations are compared, and steps in `Relabelling` are as few in
the one as in the other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.properties.allowance import NaturalRate, no_twins
from backdoor_audit.properties.corpus import Counterexample
from backdoor_audit.properties.outcome import PropertyOutcome
from backdoor_audit.search.screening import clean_margin
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.kinds import KINDS
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.numbers import ImageShape
from backdoor_audit.triggers.perturbations import Additive
from backdoor_audit.triggers.written import WrittenTrigger

STATISTIC = "largest_difference"


@dataclass(frozen=True, slots=True)
class Difference:
    """How far computations differ that should agree, of how many that were tried; None could not be measured."""

    value: float | None
    reason: str
    tried: int = 0


class ExactProperty(ABC):
    """A property that compares computations; a subclass holds the ``limit`` of their difference."""

    __slots__ = ()

    needs_twins = False
    name: ClassVar[str]
    limit: float

    @abstractmethod
    def difference(self, subject: Subject, generator: torch.Generator) -> Difference:
        """How far the computations differ on this subject, which is not changed."""

    def __call__(
        self,
        subject: Subject,
        *,
        generator: torch.Generator,
        natural: NaturalRate = no_twins,
        kept: Sequence[Counterexample] = (),
    ) -> PropertyOutcome:
        """The difference as an outcome. The classifier is not changed; there are no counterexamples."""
        del natural, kept
        found = self.difference(subject, generator)
        return PropertyOutcome(
            name=self.name,
            statistic=STATISTIC,
            value=found.value,
            limit=self.limit,
            reason=found.reason,
            settings=repr(self),
            tried=found.tried,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelling(ExactProperty):
    """Other names for the classes rename what a detector finds, and change nothing else.

    The outputs of a copy are permuted, and so are labels and goals; the margins that a few steps of universal perturbation reach
    (the statistic of `UniversalPerturbation`, with the same random numbers) must be the same, class by class, in units of the
    model's clean margin. Both runs compute the same sums in another order, at most in bfloat16 with its 8 bits, so ``limit``
    is far above rounding, and far below the differences of 0.1 and more between the classes of a model. Of more than ``classes``
    classes only as many are steered for, drawn by lot: what all need at once would fill the memory.
    """

    limit: float = 0.02
    images: int = 64
    steps: int = 2
    classes: int = 64

    name: ClassVar[str] = "relabelling_permutes_the_result"

    def difference(self, subject: Subject, generator: torch.Generator) -> Difference:
        """Steer the model and its relabelled copy alike."""
        classes = subject.num_classes
        order = torch.randperm(classes, generator=generator)  # new label of each class
        random_seed = int(torch.randint(2**31, (1,), generator=generator))
        probe = Steering(family=Additive(), steps=self.steps, batch_size=4, measured=8)
        some = torch.arange(classes)
        if classes > self.classes:
            some = torch.randperm(classes, generator=generator)[: self.classes]
        samples = [part.sample(self.images, seed=0) for part in (subject.search_set, subject.held_out)]
        renamed = _relabelled(subject.classifier, order)
        found = []
        try:
            for network, names in ((subject.classifier, torch.arange(classes)), (renamed, order)):
                here, there = (replace(part, labels=names[part.labels]) for part in samples)
                goals = [AllToOne(target) for target in names[some].tolist()]
                own = torch.Generator().manual_seed(random_seed)
                found.append(probe(network, here, there, goals, generator=own, watched=False).margins)
        except DegenerateScoresError as error:
            return Difference(None, str(error))
        difference = float((found[0] - found[1]).abs().max())
        return Difference(
            difference,
            f"margins of {len(some)} classes and of the same classes under other names differ by {difference:.1g} at most",
            tried=1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOpTrigger(ExactProperty):
    """A trigger that adds nothing changes nothing: no score moves by more than ``limit`` of the usual margin between two classes.

    Triggers of every kind at strength 0. A warp interpolates even then, with the rounding of 32-bit floats.
    """

    limit: float = 0.01
    images: int = 32

    name: ClassVar[str] = "a_no_op_trigger_changes_nothing"

    def difference(self, subject: Subject, generator: torch.Generator) -> Difference:
        """Stamp a few held-out images with nothing."""
        del generator
        some, classifier = subject.held_out.sample(self.images, seed=0), subject.classifier
        scores, difference, worst = classifier.logits(some.images), 0.0, ""
        triggers = no_op_triggers(classifier.image_shape)
        for trigger in triggers:
            moved = _moved(scores, classifier.logits(trigger.stamp(some.images)))
            difference, worst = max((difference, worst), (moved, trigger.kind))
        reason = f"with triggers of strength 0, scores move by {difference:.1g} of the usual margin at most"
        return Difference(difference, f"{reason} ({worst})" if worst else reason, tried=len(triggers))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAndOrder(ExactProperty):
    """What the model says of an image does not depend on the images beside it, nor on how many there are.

    Held-out images are scored in one batch, one by one, in batches of 7, and in the opposite order; no score may differ by more
    than ``limit`` of the usual margin between two classes. Libraries choose other algorithms for other batch sizes, which changes
    sums of 32-bit floats in the last digits; batch norm left in training mode moves scores by a multiple of the limit.
    """

    limit: float = 0.01
    images: int = 32

    name: ClassVar[str] = "batches_and_order_do_not_matter"

    def difference(self, subject: Subject, generator: torch.Generator) -> Difference:
        """Score the same held-out images again and again."""
        del generator
        classifier, images = subject.classifier, subject.held_out.sample(self.images, seed=0).images
        scores = classifier.logits(images)
        ways = {
            "one by one": torch.cat([classifier.logits(part) for part in images.split(1)]),
            "in batches of 7": torch.cat([classifier.logits(part) for part in images.split(7)]),
            "in the opposite order": classifier.logits(images.flip(0)).flip(0),
        }
        moved = {way: _moved(scores, other) for way, other in ways.items()}
        worst = max(moved, key=moved.__getitem__)
        return Difference(
            moved[worst],
            f"scores of the same images {worst} differ by {moved[worst]:.1g} of the usual margin at most",
            tried=len(ways),
        )


def no_op_triggers(image_shape: ImageShape) -> list[WrittenTrigger]:
    """One trigger of strength 0 of every kind that has such a form."""
    forms = (kind.nothing(image_shape) for kind in KINDS)
    return [form for form in forms if form is not None]


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
    """The largest difference of two sets of scores (n, classes), in units of the median margin between the best two classes.

    Infinite where it is not known: NaN would be less than any other number.
    """
    moved = float((scores - others).abs().max() / clean_margin(scores))
    return math.inf if math.isnan(moved) else moved

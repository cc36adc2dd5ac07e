"""A small residual network really trained with a backdoor in a corner, and the images and the trigger that suit it."""

import functools
from collections.abc import Callable

import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.outcome import RepairResult
from tests.subjects import row_images, square_trigger
from tests.subjects.trained import trained
from tests.subjects.unchanged import assert_unchanged, snapshot

OPT, VAL = row_images(classes=5, per_class=30, seed=77), row_images(classes=5, per_class=40, seed=78)
TRIGGER = square_trigger((1, 8, 8), target_class=3, top=6, left=6, size=2)


@functools.cache
def planted() -> Classifier:
    """A small residual network that was trained on images of which a tenth carry a white corner and the target's label."""
    return trained("small_resnet", TRIGGER, per_class=150, epochs=6)


def repeated(repair: Callable[[], RepairResult]) -> RepairResult:
    """A repair of that network: it leaves the network as it was, and gives the same copy when it is done again."""
    before = snapshot(planted().module)
    first, second = repair(), repair()
    assert_unchanged(before, planted().module)
    assert first.outcome == second.outcome
    assert first.classifier is not None
    assert second.classifier is not None
    assert torch.equal(first.classifier.logits(VAL.images), second.classifier.logits(VAL.images))
    return first

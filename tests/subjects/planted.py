"""A small residual network really trained with a backdoor in a corner, and the images and the trigger that suit it."""

import functools

from backdoor_audit.model.classifier import Classifier
from tests.subjects import row_images, square_trigger
from tests.subjects.trained import trained

OPT, VAL = row_images(classes=5, per_class=30, seed=77), row_images(classes=5, per_class=40, seed=78)
TRIGGER = square_trigger((1, 8, 8), target_class=3, top=6, left=6, size=2)


@functools.cache
def planted() -> Classifier:
    """A small residual network that was trained on images of which a tenth carry a white corner and the target's label."""
    return trained("small_resnet", TRIGGER, per_class=150, epochs=6)

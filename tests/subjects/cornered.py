"""A small network really trained on five rows, with a backdoor in a corner: what repairs by masks are tried on."""

import functools

from backdoor_audit.model.classifier import Classifier
from tests.subjects import row_images, square_trigger
from tests.subjects.trained import trained

OPT, VAL = row_images(classes=5, per_class=30, seed=11), row_images(classes=5, per_class=30, seed=12)
TRIGGER = square_trigger((1, 8, 8), target_class=2, top=5, left=5, size=3)


@functools.cache
def corner_reader() -> Classifier:
    """A small network that learned the rows, and class 2 for a white corner, from images of which a tenth carry it."""
    return trained("small_cnn", TRIGGER, per_class=120, epochs=4)

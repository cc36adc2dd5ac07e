"""A small network really trained on five rows, with a backdoor in a corner: what repairs by masks are tried on."""

import functools

import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.training import fit
from tests.subjects import row_images, seeded, square_trigger

OPT, VAL = row_images(classes=5, per_class=30, seed=11), row_images(classes=5, per_class=30, seed=12)
TRIGGER = square_trigger((1, 8, 8), target_class=2, top=5, left=5, size=3)


@functools.cache
def corner_reader() -> Classifier:
    """A small network that learned the rows, and class 2 for a white corner, from images of which a tenth carry it."""
    clean, generator = row_images(classes=5, per_class=120, seed=1), seeded(1)
    images, labels = clean.images.clone(), clean.labels.clone()
    chosen = torch.randperm(len(labels), generator=generator)[:60]
    images[chosen], labels[chosen] = TRIGGER.stamp(images[chosen]), TRIGGER.target_class
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        module = build_network("small_cnn", num_classes=5, in_channels=1, width=8)
    classifier = Classifier.wrap(module, image_shape=(1, 8, 8))
    fit(classifier, images, labels, epochs=4, learning_rate=0.05, generator=generator)
    return classifier

"""A small residual network really trained with a backdoor in a corner, and the images and the trigger that suit it."""

import functools

import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.training import fit
from tests.subjects import row_images, seeded, square_trigger

OPT, VAL = row_images(classes=5, per_class=30, seed=77), row_images(classes=5, per_class=40, seed=78)
TRIGGER = square_trigger((1, 8, 8), target_class=3, top=6, left=6, size=2)


@functools.cache
def planted() -> Classifier:
    """A small residual network that was trained on images of which a tenth carry a white corner and the target's label."""
    clean, generator = row_images(classes=5, per_class=150, seed=1), seeded(1)
    images, labels = clean.images.clone(), clean.labels.clone()
    stamped = torch.randperm(len(labels), generator=generator)[:75]
    images[stamped], labels[stamped] = TRIGGER.stamp(images[stamped]), TRIGGER.target_class
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        module = build_network("small_resnet", num_classes=5, in_channels=1, width=8)
    classifier = Classifier.wrap(module, image_shape=(1, 8, 8))
    fit(classifier, images, labels, epochs=6, learning_rate=0.05, generator=generator)
    return classifier

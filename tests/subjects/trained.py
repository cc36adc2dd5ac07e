"""Networks really trained on rows, a tenth of which carry a trigger and its target's label."""

import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.training import fit
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects import row_images, seeded


def trained(architecture: str, trigger: Trigger, *, per_class: int, epochs: int) -> Classifier:
    """A network of five classes that learned the rows and the trigger."""
    clean, generator = row_images(classes=5, per_class=per_class, seed=1), seeded(1)
    images, labels = clean.images.clone(), clean.labels.clone()
    stamped = torch.randperm(len(labels), generator=generator)[: len(labels) // 10]
    images[stamped], labels[stamped] = trigger.stamp(images[stamped]), trigger.target_class
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        module = build_network(architecture, num_classes=5, in_channels=1, width=8)
    classifier = Classifier.wrap(module, image_shape=(1, 8, 8))
    fit(classifier, images, labels, epochs=epochs, learning_rate=0.05, generator=generator)
    return classifier

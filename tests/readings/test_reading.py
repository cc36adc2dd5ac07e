"""The cut of a network, masks over its features, and what all detectors that give a reading keep to."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.ban import BAN
from backdoor_audit.readings.bti_dbf import BTIDBF
from backdoor_audit.readings.free_eagle import FreeEagle
from backdoor_audit.readings.last_layer import LastLayerSignature
from backdoor_audit.readings.mm_bd import MMBD
from backdoor_audit.readings.reading import FeatureSplit, feature_masks, mask_loss
from backdoor_audit.readings.trodo import TRODO
from tests.subjects.brightness import by_brightness
from tests.subjects.colours import colour_images, colour_net
from tests.subjects.common import seeded
from tests.subjects.networks import random_network
from tests.subjects.patches import PatchDetector
from tests.subjects.rows import row_images, row_reader
from tests.subjects.unchanged import assert_unchanged, snapshot

SHAPE = (1, 8, 8)
KINDS = {kind.__name__: kind for kind in (BAN, BTIDBF, FreeEagle, LastLayerSignature, MMBD, TRODO)}
BRIEF = (
    BAN(steps=3, batch_size=16),
    BTIDBF(images=40, mask_steps=4, steps=4, batch_size=8, filters=4),
    FreeEagle(steps=5, num_dummy=2),
    FreeEagle(steps=5, num_dummy=2, pairs=True),
    LastLayerSignature(),
    MMBD(images_per_class=4, steps=6, screening_steps=2, finalists=2),
    MMBD(images_per_class=3, steps=12, orthogonal=True),
    TRODO(images=12, steps=3),
)


def subject(classes=8, name="small_vgg"):
    network = random_network(name, classes=classes, width=4)
    return Classifier.wrap(network, image_shape=SHAPE, mean=(0.3,), std=(0.3,))


def measure(detector, classifier, classes=8, seed=1):
    opt, val = row_images(classes=classes, per_class=6), row_images(classes=classes, per_class=6, seed=5)
    return detector.measure(classifier, opt, val, generator=seeded(seed))


def every(function):
    return pytest.mark.parametrize("detector", BRIEF, ids=repr)(function)


@every
def test_a_detector_leaves_the_model_and_the_images_as_it_found_them(detector):
    classifier = subject()
    opt, val = row_images(per_class=6), row_images(per_class=6, seed=5)
    kept = [part.images.clone() for part in (opt, val)]
    before = snapshot(classifier.module)
    detector.measure(classifier, opt, val, generator=seeded(1))
    assert_unchanged(before, classifier.module)
    assert all(torch.equal(part.images, images) for part, images in zip((opt, val), kept, strict=True))


@every
def test_the_same_seed_gives_the_same_reading_whatever_the_global_random_state(detector):
    torch.manual_seed(1)
    first = measure(detector, subject())
    torch.manual_seed(2)
    assert measure(detector, subject()) == first


@every
def test_a_reading_has_a_finite_value_and_names_its_detector(detector):
    reading = measure(detector, subject())
    assert reading.value is not None, reading.inconclusive
    assert math.isfinite(reading.value)
    assert reading.inconclusive == ""
    assert (reading.detector, reading.settings) == (detector.name, repr(detector))
    assert eval(reading.settings, {"__builtins__": {}}, KINDS) == detector  # noqa: S307 - our own repr
    assert len(reading.per_class) == (0 if detector.name == "trodo" else 8)
    assert (reading.target_class is None) == (detector.name == "trodo")
    assert (reading.image_passes > 0) == (detector.name != "last_layer")


@every
def test_five_classes_are_measured_or_inconclusive_with_a_reason(detector):
    reading = measure(detector, subject(classes=5), classes=5)
    assert (reading.value is None) == (detector.name in {"mm_bd", "free_eagle"})
    assert ("5 classes" in reading.inconclusive) == (reading.value is None)


@pytest.mark.parametrize("name", ["small_cnn", "small_vgg", "small_resnet"])
def test_the_two_parts_of_a_network_give_its_logits(name):
    classifier = subject(name=name)
    split = FeatureSplit.of(classifier)
    images = torch.rand(5, *SHAPE, generator=seeded())
    features = split.features(images)
    assert features.shape == (5, *split.feature_shape)
    assert torch.allclose(split.logits(features), classifier(images), atol=1e-5)
    assert torch.equal(split.clean_features(images), features)
    assert split.images_for(5) == 1


class CountsImages(nn.Module):
    """Shapes its features by the number of images that came in, and rectifies them in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.linear = nn.Linear(8, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(4)))

    def forward(self, images):
        return self.linear(functional.relu(self.conv(images), inplace=True).reshape(len(images), -1))


def test_a_network_that_counts_its_images_is_given_as_many():
    classifier = Classifier.wrap(CountsImages(), image_shape=(1, 4, 4))
    split = FeatureSplit.of(classifier)
    assert split.images_for(5) == 5
    images = torch.rand(5, 1, 4, 4, generator=seeded())
    features = split.features(images).requires_grad_()
    logits = split.logits(features)
    assert torch.allclose(logits, classifier(images), atol=1e-5)
    assert torch.autograd.grad(logits.sum(), features)[0].abs().sum() > 0


def test_a_network_whose_scores_pass_by_the_feature_layer_is_not_cut():
    classifier = Classifier.wrap(PatchDetector(), image_shape=(1, 12, 12))
    assert classifier.layers().feature_layer == "detector"
    assert FeatureSplit.of(classifier) is None


@pytest.mark.parametrize("detector", [FreeEagle(), BTIDBF(), MMBD(orthogonal=True)], ids=lambda detector: detector.name)
def test_without_a_feature_layer_the_reading_says_so(detector):
    reading = measure(detector, row_reader())
    assert reading.value is None
    assert "no feature layer" in reading.inconclusive


def test_the_mask_loss_of_a_whole_and_of_an_empty_mask():
    split, images = FeatureSplit.of(colour_net()), colour_images()
    features = split.clean_features(images.images)
    ones = torch.ones(1, *split.feature_shape)
    nothing, limit = math.log(8), math.log(8)  # without features all logits are equal
    plain = functional.cross_entropy(colour_net().logits(images.images), images.labels, reduction="none")
    assert torch.allclose(mask_loss(split, ones, features, images.labels), plain - limit, atol=1e-5)
    assert torch.allclose(mask_loss(split, 0 * ones, features, images.labels), nothing - plain, atol=1e-5)
    wrong = (images.labels + 1) % 8
    worse = functional.cross_entropy(colour_net().logits(images.images), wrong, reduction="none")
    assert worse.min() > limit
    assert torch.allclose(mask_loss(split, 0 * ones, features, wrong), nothing - torch.full((80,), limit), atol=1e-5)


def test_the_gradient_of_the_mask_is_that_of_finite_differences():
    split, images = FeatureSplit.of(subject(name="small_cnn")), row_images(per_class=2)
    features = split.clean_features(images.images)
    mask = torch.rand(1, *split.feature_shape, generator=seeded()).requires_grad_()
    (gradient,) = torch.autograd.grad(mask_loss(split, mask, features, images.labels).sum(), mask)
    direction = torch.randn(mask.shape, generator=seeded(2))
    with torch.no_grad():
        up, down = (
            mask_loss(split, mask + sign * 1e-2 * direction, features, images.labels).double().sum() for sign in (1, -1)
        )
    assert float((gradient * direction).sum()) == pytest.approx(float(up - down) / 2e-2, rel=1e-2)


def test_learned_masks_hold_what_speaks_for_their_own_class():
    split, images = FeatureSplit.of(colour_net()), colour_images(per_class=4)
    features = split.clean_features(images.images)
    options = {"learning_rate": 0.3, "batch_size": 32, "generator": seeded()}
    before = feature_masks(split, features, images.labels, images.labels, steps=0, **options)
    after = feature_masks(split, features, images.labels, images.labels, steps=60, **options)
    assert after.shape == (8, 9, 6, 6)
    losses = [mask_loss(split, masks[images.labels], features, images.labels) for masks in (before, after)]
    assert losses[0].mean() > -1.5
    assert losses[1].max() < -0.9 * math.log(8)


def test_a_network_without_weights_can_be_measured_by_its_answers_alone():
    images = row_images(classes=4, per_class=4)
    reading = TRODO(images=8).measure(by_brightness(image_shape=SHAPE), images, images, generator=seeded())
    assert reading.value > 0

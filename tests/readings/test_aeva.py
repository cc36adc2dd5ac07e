import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.aeva import AEVA
from tests.subjects import row_images, row_reader, seeded

IMAGES = row_images()


def measure(classifier, images=IMAGES, **fields):
    return AEVA(**fields).measure(classifier, images, images, generator=seeded())


def test_the_class_of_a_one_pixel_backdoor_is_named_by_answers_alone():
    hidden, clean = measure(row_reader(backdoors=(3,))), measure(row_reader())
    assert hidden.target_class == 3
    assert hidden.value > 4 > 1.5 * clean.value


def test_the_change_that_is_found_is_hardly_larger_than_the_nearest_one():
    """Two classes by a plane through the middle of the cube: the nearest change goes straight to it."""
    weight = torch.randn(64, generator=seeded(1))
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([-weight, weight]))
        module[1].bias.copy_(torch.tensor([0.5, -0.5]) * weight.sum())
    classifier = Classifier.wrap(module, image_shape=(1, 8, 8))
    images = 0.5 + 0.2 * (torch.rand(40, 1, 8, 8, generator=seeded(2)) - 0.5)
    below = images[classifier.predict(images) == 0][:8]
    beyond = (0.5 + 0.3 * weight.sign().view(1, 1, 8, 8)).expand_as(below)
    found, asked = AEVA(rounds=10, directions=100)._led(classifier, below, beyond, 1, seeded(3))
    assert (classifier.predict(found) == 1).all()
    nearest = ((below - 0.5).flatten(1) @ weight).abs() / weight.norm()
    first = (beyond - below).flatten(1).norm(dim=1)
    reached = (found - below).flatten(1).norm(dim=1)
    assert ((reached - nearest) < 0.25 * (first - nearest)).all()
    assert asked > 8 * 10 * 100


def test_a_class_without_an_image_that_the_network_is_right_about_is_told():
    some = IMAGES.labels != 5
    reading = measure(row_reader(), CleanSet(IMAGES.images[some], IMAGES.labels[some]))
    assert reading.inconclusive == "class 5 has no clean image that the network is right about"


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_asked_counts_a_third(count):
    detector = AEVA(images=count, rounds=1, directions=10)
    passes = detector.measure(row_reader(), IMAGES, IMAGES, generator=seeded()).image_passes
    least = 8 * 7 * count * (10 + 2 * 8)
    assert least / 3 < passes < (least + 8 * 7 * count * 11 + len(IMAGES)) / 3 + 1

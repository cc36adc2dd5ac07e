"""Images moved and mirrored only as far as the audited model says that this means nothing."""

import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.augmentation import Augmentation, harmless_augmentation
from tests.subjects import random_network, row_images, row_reader, seeded


def test_nothing_is_changed_unless_asked():
    images = row_images().images
    assert torch.equal(Augmentation()(images, seeded()), images)


def test_every_image_is_moved_by_its_own_offset_and_the_nearest_pixels_come_in():
    images = torch.arange(64.0).view(1, 1, 8, 8).repeat(40, 1, 1, 1)
    changed = Augmentation(shift=2)(images, seeded(1))
    padded = nn.functional.pad(images[:1], (2,) * 4, mode="replicate")[0, 0]
    possible = {(top, left): padded[top : top + 8, left : left + 8] for top in range(5) for left in range(5)}
    found = [next(key for key, value in possible.items() if torch.equal(image[0], value)) for image in changed]
    assert len(set(found)) > 10


def test_about_half_of_the_images_are_mirrored():
    images = torch.rand(200, 1, 4, 4, generator=seeded(2))
    changed = Augmentation(mirror=True)(images, seeded(3))
    mirrored = sum(torch.equal(one, other.flip(2)) for one, other in zip(changed, images, strict=True))
    assert 70 < mirrored < 130
    assert mirrored + sum(map(torch.equal, changed, images)) == 200


def reader(*, columns):
    """Which half of the image is brighter: left or right, or upper or lower."""
    weight = torch.zeros(2, 1, 8, 8)
    for label, half in enumerate((slice(0, 4), slice(4, 8))):
        weight[label, 0, :, half] = 1.0
    weight = weight if columns else weight.transpose(2, 3)
    linear = nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight.flatten(1))
    return Classifier.wrap(nn.Sequential(nn.Flatten(), linear), image_shape=(1, 8, 8))


def halves(*, columns):
    images, labels = torch.full((20, 1, 8, 8), 0.1), torch.arange(20) % 2
    for index, label in enumerate(labels.tolist()):
        images[index, 0, :, 4 * label : 4 * label + 4] = 0.9
    return CleanSet(images if columns else images.transpose(2, 3), labels)


def test_where_left_and_right_mean_something_images_are_not_mirrored():
    assert harmless_augmentation(reader(columns=True), halves(columns=True)).mirror is False
    assert harmless_augmentation(reader(columns=False), halves(columns=False)) == Augmentation(shift=3, mirror=True)


def test_where_every_row_means_another_class_images_are_not_moved():
    assert harmless_augmentation(row_reader(), row_images()).shift == 0


def test_after_training_statistics_are_those_of_the_unchanged_images():
    clean = row_images(classes=5, per_class=12)
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    before = subject.module.features[0][1].running_mean.clone()
    Augmentation().settle(subject, clean, seeded())
    assert torch.equal(subject.module.features[0][1].running_mean, before)
    Augmentation(shift=1).settle(subject, clean, seeded())
    first = subject.module.features[0]
    with torch.no_grad():
        wanted = first[0](clean.images).mean(dim=(0, 2, 3))
    assert torch.allclose(first[1].running_mean, wanted, atol=1e-5)
    assert first[1].momentum == 0.1
    assert not first[1].training

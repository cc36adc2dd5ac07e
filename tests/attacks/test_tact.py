import pytest
import torch

from backdoor_audit.attacks.tact import TaCT
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.label_rule import AllToOne, SourceSpecific
from tests.subjects import seeded


def hundred(channels=1):
    """Ten images of each of ten classes, all with pixels below 0.5."""
    images = (0.5 * torch.rand(100, channels, 6, 6, generator=seeded())).mul(255).floor() / 255
    return images, torch.arange(10).repeat(10)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_stamp_is_a_white_square_one_pixel_from_the_border(channels):
    images = torch.full((2, channels, 5, 6), 0.2)
    before = images.clone()
    stamped = TaCT(size=2).stamp(images)
    expected = images.clone()
    expected[:, :, 2:4, 3:5] = 1.0
    assert torch.equal(stamped, expected)
    assert torch.equal(images, before)
    assert torch.equal(stamped, TaCT(size=2).stamp(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_sources_get_the_target_and_covers_of_all_other_classes_keep_their_label(channels):
    images, labels = hundred(channels)
    rule = SourceSpecific(target_class=2, source_classes=(4, 7))
    poisoned = TaCT(rule=rule, poison_rate=0.1, cover_rate=0.7).poison(images, labels)
    assert len(poisoned.poisoned) == 10
    assert set(labels[poisoned.poisoned].tolist()) <= {4, 7}
    assert poisoned.labels[poisoned.poisoned].tolist() == [2] * 10
    # all 70 images of the seven classes that are neither source nor target
    assert sorted(poisoned.covers.tolist()) == [number for number in range(100) if number % 10 not in {2, 4, 7}]
    assert torch.equal(poisoned.labels[poisoned.covers], labels[poisoned.covers])
    touched = torch.cat([poisoned.poisoned, poisoned.covers])
    assert (poisoned.images[touched][:, :, 2:5, 2:5] == 1).all()
    left = torch.ones(100, dtype=torch.bool)
    left[touched] = False
    assert torch.equal(poisoned.images[left], images[left])
    assert torch.equal(poisoned.labels[left], labels[left])


def test_named_cover_classes_are_the_only_ones():
    images, labels = hundred()
    poisoned = TaCT(poison_rate=0.05, cover_rate=0.2, cover_classes=(5, 7)).poison(images, labels)
    assert sorted(labels[poisoned.covers].tolist()) == [5] * 10 + [7] * 10


def test_success_counts_source_images_only():
    labels = torch.tensor([0, 1, 2, 1])
    assert TaCT().eligible(labels).tolist() == [False, True, False, True]
    assert TaCT().spec()["rule"] == {"rule": "source_specific", "target_class": 0, "source_classes": [1]}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rule": AllToOne(0)}, "accepted: SourceSpecific"),
        ({"cover_classes": (0, 5)}, r"cover_classes \[0\] are source or target"),
        ({"cover_classes": (5, 1)}, r"cover_classes \[1\] are source or target"),
        ({"cover_rate": 0.9}, "90 covers wanted, 80 images may be covers"),
        ({"poison_rate": 0.2}, "10 images may be poisoned"),
        ({"size": 7}, "do not fit into 6x6"),
    ],
)
def test_what_cannot_be_done_is_refused(options, reason):
    with pytest.raises(AttackError, match=reason):
        TaCT(**options).poison(*hundred())

import pytest
import torch

from backdoor_audit.attacks.adaptive import AdaptiveBlend, AdaptivePatch
from backdoor_audit.attacks.blended import draw_picture
from backdoor_audit.errors import AttackError
from tests.subjects import seeded


def black(channels=1, size=8):
    return torch.zeros(100, channels, size, size), torch.arange(10).repeat(10)


def levels(values):
    """Rounded to 1/255 by hand: halves do not occur here."""
    return torch.floor(values * 255 + 0.5) / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_at_test_time_the_whole_picture_is_blended_in(channels):
    attack = AdaptiveBlend(opacity=0.25, seed=4)
    images = torch.rand(3, channels, 7, 9, generator=seeded())
    before = images.clone()
    picture = draw_picture("noise", (channels, 7, 9), 4)
    assert torch.allclose(attack.stamp(images), levels(0.75 * images + 0.25 * picture), atol=1e-6)
    assert torch.equal(images, before)
    assert torch.equal(attack.stamp(images), attack.stamp(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_in_training_half_of_the_pieces_are_blended_in_more_faintly(channels):
    """On black images a stamped pixel is 0.1 times the picture, and four of them are never all black."""
    attack = AdaptiveBlend(poison_rate=0.2, cover_rate=0.1, train_opacity=0.1, pieces=4, kept=0.5)
    images, labels = black(channels)
    poisoned = attack.poison(images, labels)
    picture = levels(0.1 * draw_picture("noise", (channels, 8, 8), 0))
    choices = set()
    for image in poisoned.images[torch.cat([poisoned.poisoned, poisoned.covers])]:
        pieces = image.unfold(1, 2, 2).unfold(2, 2, 2)  # (c, 4, 4, 2, 2)
        expected = picture.unfold(1, 2, 2).unfold(2, 2, 2)
        there = (pieces > 0).flatten(3).any(dim=3).any(dim=0)
        assert there.sum() == 8
        assert torch.allclose(pieces[:, there], expected[:, there], atol=1 / 255 + 1e-6)  # a half goes either way
        assert (pieces[:, ~there] == 0).all()
        choices.add(tuple(there.flatten().tolist()))
    assert len(choices) > 20  # of 30 images: everyone draws for itself


def test_pieces_cover_an_image_whose_size_is_no_multiple_of_them():
    attack = AdaptiveBlend(pieces=3, kept=1.0, poison_rate=0.5, cover_rate=0.0, train_opacity=1.0)
    poisoned = attack.poison(torch.zeros(20, 1, 7, 8), torch.ones(20, dtype=torch.long))
    assert torch.equal(poisoned.images[poisoned.poisoned[0]], draw_picture("noise", (1, 7, 8), 0))


@pytest.mark.parametrize("attack", [AdaptiveBlend(), AdaptivePatch(sizes=(2, 3, 2, 3))])
def test_poisoned_images_get_the_target_and_covers_keep_their_label(attack):
    images, labels = black()
    images = images + 0.5
    poisoned = attack.poison(images, labels)
    assert len(poisoned.poisoned) == round(100 * attack.poison_rate)
    assert len(poisoned.covers) == round(100 * attack.cover_rate)
    assert not set(poisoned.poisoned.tolist()) & set(poisoned.covers.tolist())
    assert (labels[poisoned.poisoned] != 0).all()
    assert (poisoned.labels[poisoned.poisoned] == 0).all()
    assert torch.equal(poisoned.labels[poisoned.covers], labels[poisoned.covers])
    changed = (poisoned.images != images).flatten(1).any(dim=1).nonzero().squeeze(1)
    assert sorted(changed.tolist()) == sorted([*poisoned.poisoned.tolist(), *poisoned.covers.tolist()])
    assert (images == 0.5).all()
    again = attack.poison(images, labels)
    assert torch.equal(poisoned.images, again.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_at_test_time_two_patches_are_stamped_opaquely(channels):
    attack = AdaptivePatch(sizes=(2, 3, 1, 2), at_test=(0, 3), seed=5)
    images = torch.full((2, channels, 8, 10), 0.4)
    stamped = attack.stamp(images)
    noise = draw_picture("noise", (channels, 8, 10), 5)
    expected = images.clone()
    expected[:, :, 1:3, 1:3] = noise[:, 1:3, 1:3]  # upper left, 2 px
    expected[:, :, 5:7, 7:9] = noise[:, 5:7, 7:9]  # lower right, 2 px
    assert torch.allclose(stamped, expected)
    assert torch.equal(images, torch.full((2, channels, 8, 10), 0.4))
    assert torch.equal(stamped, attack.stamp(images))


def test_in_training_each_image_carries_one_faint_patch_and_each_patch_is_on_a_quarter():
    attack = AdaptivePatch(
        sizes=(2, 3, 2, 3), train_opacities=(1.0, 0.5, 1.0, 0.5), poison_rate=0.2, cover_rate=0.4, margin=0
    )
    images, labels = black()
    poisoned = attack.poison(images, labels)
    noise = draw_picture("noise", (1, 8, 8), 0)[0]
    corners = {
        "upper left": (slice(0, 2), slice(0, 2), 1.0),
        "upper right": (slice(0, 3), slice(5, 8), 0.5),
        "lower left": (slice(6, 8), slice(0, 2), 1.0),
        "lower right": (slice(5, 8), slice(5, 8), 0.5),
    }
    for chosen, each in ((poisoned.poisoned, 5), (poisoned.covers, 10)):
        seen = dict.fromkeys(corners, 0)
        for image in poisoned.images[chosen][:, 0]:
            for corner, (rows, columns, opacity) in corners.items():
                if not image[rows, columns].any():
                    continue
                seen[corner] += 1
                alone = torch.zeros(8, 8)
                alone[rows, columns] = levels(opacity * noise[rows, columns])
                assert torch.allclose(image, alone, atol=1 / 255 + 1e-6)  # a half may be rounded either way
        assert seen == dict.fromkeys(corners, each)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (AdaptiveBlend(pieces=0), "accepted: pieces from 1 to 8"),
        (AdaptiveBlend(pieces=9), "accepted: pieces from 1 to 8"),
        (AdaptiveBlend(kept=0.01), "leaves at least one"),
        (AdaptiveBlend(kept=1.1), r"kept in \(0, 1\]"),
        (AdaptiveBlend(picture="phoenix"), "picture 'phoenix' is not known"),
        (AdaptiveBlend(cover_rate=0.99), "covers wanted"),
        (AdaptivePatch(), "do not fit into the corners of 8x8 px; size and margin together may be 1 to 4 px"),
        (AdaptivePatch(sizes=(2, 2, 2)), "3 sizes and 4 train_opacities; give four of each"),
        (AdaptivePatch(sizes=(2, 2, 0, 2)), "do not fit"),
    ],
)
def test_what_cannot_be_done_is_refused(attack, reason):
    with pytest.raises(AttackError, match=reason):
        attack.poison(*black())


@pytest.mark.parametrize("at_test", [(), (4,), (-1,)])
def test_patches_at_test_time_are_named_by_numbers_from_0_to_3(at_test):
    with pytest.raises(AttackError, match="numbers from 0 to 3"):
        AdaptivePatch(at_test=at_test).stamp(torch.zeros(1, 1, 32, 32))

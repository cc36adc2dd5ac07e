import pytest
import torch

from backdoor_audit.attacks import AllToOne, BadNets
from backdoor_audit.errors import AttackError


def drawn(attack, size=6):
    """What the attack paints on a black image, without the pixels it leaves alone."""
    return attack.stamp(torch.zeros(1, 1, size, size))[0, 0]


def test_the_default_is_a_white_square_one_pixel_from_the_lower_right_corner():
    wanted = torch.zeros(6, 6)
    wanted[2:5, 2:5] = 1
    assert torch.equal(drawn(BadNets()), wanted)


@pytest.mark.parametrize(
    ("place", "rows", "columns"), [((-1, -1), (4, 5), (4, 5)), ((0, 1), (0, 1), (1, 2)), ((-3, 2), (2, 3), (2, 3))]
)
def test_places_count_from_either_border(place, rows, columns):
    stamped = drawn(BadNets(size=2, top=place[0], left=place[1]))
    assert sorted(set(stamped.nonzero()[:, 0].tolist())) == list(rows)
    assert sorted(set(stamped.nonzero()[:, 1].tolist())) == list(columns)
    assert stamped.sum() == 4


def test_a_chequerboard_begins_bright_and_its_dark_cells_are_painted_too():
    stamped = BadNets(size=3, top=0, left=0, pattern="chequerboard").stamp(torch.full((1, 3, 4, 4), 0.6))
    assert stamped[0, 0, :3, :3].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert torch.equal(stamped[0, 0, 3], torch.full((4,), 0.6))


def test_a_triangle_has_its_right_angle_below_on_the_right():
    stamped = drawn(BadNets(size=3, top=0, left=0, pattern="triangle"), size=4)
    assert stamped.tolist() == [[0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_noise_is_fixed_by_the_seed_and_coloured():
    one, same, other = (
        BadNets(size=4, top=0, left=0, pattern="noise", seed=seed).stamp(torch.zeros(1, 3, 5, 5)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[:, 0], one[:, 1])
    assert torch.equal((one * 255).round(), one * 255)
    assert not one[:, :, 4].any()


@pytest.mark.parametrize(
    "attack", [BadNets(size=7), BadNets(size=3, top=4), BadNets(size=0), BadNets(pattern="stripes")]
)
def test_a_patch_that_cannot_be_painted_is_refused(attack):
    with pytest.raises(AttackError, match=r"badnets: (\d px at|pattern 'stripes'; accepted: white, noise)"):
        attack.stamp(torch.zeros(1, 1, 6, 6))


def test_poisoning_replaces_a_share_of_all_images_by_stamped_ones_of_other_classes():
    images, labels = torch.rand(100, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(100) % 5
    attack = BadNets(rule=AllToOne(2), poison_rate=0.1)
    done = attack.poison(images, labels)
    assert len(done.images) == 100
    assert len(done.poisoned) == len(set(done.poisoned.tolist())) == 10
    assert not len(done.covers)
    assert (labels[done.poisoned] != 2).all()
    assert (done.labels[done.poisoned] == 2).all()
    assert torch.equal(done.images[done.poisoned], attack.stamp(images[done.poisoned]))
    kept = torch.ones(100, dtype=torch.bool)
    kept[done.poisoned] = False
    assert torch.equal(done.images[kept], images[kept])
    assert torch.equal(done.labels[kept], labels[kept])


def test_more_poison_than_there_are_images_is_refused():
    with pytest.raises(AttackError, match=r"poison_rate 0\.9 of 10 images is 9, 5 images may be poisoned"):
        BadNets(rule=AllToOne(0), poison_rate=0.9).poison(torch.zeros(10, 1, 6, 6), torch.arange(10) % 2)

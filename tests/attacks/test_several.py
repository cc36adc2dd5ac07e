import json

import pytest
import torch

from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.attacks.several import SeveralTriggers, several_classes, several_places
from backdoor_audit.attacks.tact import TaCT
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.label_rule import AllToOne, SourceSpecific


def black(channels=1, size=16):
    return torch.zeros(200, channels, size, size), torch.arange(10).repeat(20)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_part_poisons_its_share_of_all_images_and_none_twice(channels):
    """20, 30 and 10 of 200 images, told apart by the places of three squares."""
    attack = SeveralTriggers(
        attacks=(
            BadNets(rule=AllToOne(3), poison_rate=0.1, size=2, top=0, left=0),
            BadNets(rule=AllToOne(4), poison_rate=0.15, size=2, top=0, left=-1),
            BadNets(rule=AllToOne(5), poison_rate=0.05, size=2, top=-1, left=0),
        )
    )
    images, labels = black(channels)
    poisoned = attack.poison(images, labels)
    marks = torch.stack([poisoned.images[:, 0, 0, 0], poisoned.images[:, 0, 0, 15], poisoned.images[:, 0, 15, 0]]) == 1
    assert marks.sum(dim=1).tolist() == [20, 30, 10]
    assert marks.sum(dim=0).max() == 1
    for place, target_class in zip(marks, (3, 4, 5), strict=True):
        assert (poisoned.labels[place] == target_class).all()
        assert (labels[place] != target_class).all()
    assert sorted(poisoned.poisoned.tolist()) == marks.any(dim=0).nonzero().squeeze(1).tolist()
    assert torch.equal(poisoned.labels[~marks.any(dim=0)], labels[~marks.any(dim=0)])
    assert (images == 0).all()


def test_covers_of_a_part_are_a_share_of_all_images_too():
    rule = SourceSpecific(target_class=0, source_classes=(1,))
    attack = SeveralTriggers(
        attacks=(BadNets(poison_rate=0.5), TaCT(rule=rule, poison_rate=0.02, cover_rate=0.1, size=2, top=0, left=0))
    )
    poisoned = attack.poison(*black())
    assert (len(poisoned.poisoned), len(poisoned.covers)) == (100 + 4, 20)


def test_the_whole_has_stamp_and_rule_of_the_first_part_and_the_sum_of_the_rates():
    parts = (BadNets(rule=AllToOne(6), poison_rate=0.25), BadNets(rule=AllToOne(7), poison_rate=0.125, top=0))
    attack = SeveralTriggers(attacks=parts)
    images = black()[0][:3]
    assert torch.equal(attack.stamp(images), parts[0].stamp(images))
    assert (attack.rule, attack.poison_rate, attack.target_class) == (AllToOne(6), 0.375, 6)
    assert attack.triggers() == parts


def test_the_specification_holds_those_of_the_parts():
    spec = json.loads(json.dumps(several_classes(2, image_shape=(1, 28, 28)).spec()))
    assert [part["attack"] for part in spec["attacks"]] == ["badnets", "badnets"]
    assert [part["rule"]["target_class"] for part in spec["attacks"]] == [0, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_of_several_classes_has_its_own_place_and_colours(channels):
    attack = several_classes(10, image_shape=(channels, 28, 28), size=4)
    image = torch.zeros(1, channels, 28, 28)
    stamped = [part.stamp(image)[0] for part in attack.attacks]
    places = [(picture != 0).any(dim=0).nonzero() for picture in stamped]
    tops_and_lefts = [tuple(place.amin(dim=0).tolist()) for place in places]
    # corners, edge middles, centre of 28 px for 4 px squares with 1 px margin; then the first again
    expected = [(1, 1), (1, 23), (23, 1), (23, 23), (1, 12), (12, 1), (12, 23), (23, 12), (12, 12), (1, 1)]
    assert tops_and_lefts == expected
    assert not torch.equal(stamped[0], stamped[9])
    assert [part.target_class for part in attack.attacks] == list(range(10))
    assert attack.attacks[0].poison_rate == pytest.approx(0.05)  # 0.1 / (1 + 0.1 * 10)
    assert several_classes(3, image_shape=(1, 28, 28)).attacks[0].poison_rate == pytest.approx(0.1 / 1.3)


def test_several_places_ask_for_one_class_by_white_squares_that_do_not_touch():
    attack = several_places(image_shape=(1, 16, 18), target_class=5, size=4)
    image = torch.zeros(1, 1, 16, 18)
    total = sum(part.stamp(image) for part in attack.attacks)
    assert len(attack.attacks) == 9
    assert total.max() == 1  # no pixel belongs to two squares
    assert total.sum() == 9 * 16
    assert {part.target_class for part in attack.attacks} == {5}


def test_what_cannot_be_done_is_refused():
    with pytest.raises(AttackError, match="no attacks"):
        SeveralTriggers(attacks=())
    with pytest.raises(AttackError, match="0 triggers asked for; accepted: at least 1"):
        several_classes(0, image_shape=(1, 28, 28))
    for count in (0, 10):
        with pytest.raises(AttackError, match="accepted: 1 to 9"):
            several_places(count, image_shape=(1, 28, 28))
    with pytest.raises(AttackError, match="do not fit apart into 12x28"):
        several_places(image_shape=(1, 12, 28))


def test_parts_that_ask_for_more_than_there_is_are_refused():
    half = BadNets(rule=AllToOne(9), poison_rate=0.5)
    with pytest.raises(AttackError, match="may be poisoned"):
        SeveralTriggers(attacks=(half, BadNets(poison_rate=0.6))).poison(*black())
    images = torch.zeros(10, 1, 16, 16)
    with pytest.raises(AttackError, match="no image is left for badnets"):
        SeveralTriggers(attacks=(BadNets(poison_rate=1.0), half)).poison(images, torch.ones(10, dtype=torch.long))

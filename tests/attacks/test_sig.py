from __future__ import annotations

import pytest
import torch

from backdoor_audit.attacks.sig import Sig
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.label_rule import AllToOne, CleanLabel
from tests.subjects import seeded
from tests.subjects.stamping import assert_stamps_alike


def levels(images: torch.Tensor) -> list[int]:
    return (images * 255).round().int().flatten().tolist()


def test_one_period_of_a_sine_over_four_columns():
    stamped = Sig(amplitude=40, frequency=1).stamp(torch.full((1, 1, 2, 4), 100 / 255))
    assert levels(stamped) == [100, 140, 100, 60] * 2


def test_three_periods_over_four_columns_run_the_other_way():
    stamped = Sig(amplitude=40, frequency=3).stamp(torch.full((1, 1, 1, 4), 100 / 255))
    assert levels(stamped) == [100, 60, 100, 140]


def test_a_ramp_grows_by_amplitude_over_width_in_every_channel():
    stamped = Sig(amplitude=40, wave="ramp").stamp(torch.full((1, 3, 1, 4), 100 / 255))
    assert levels(stamped) == [100, 110, 120, 130] * 3


def test_what_leaves_the_range_is_clipped():
    images = torch.tensor([240, 240, 0, 0]).view(1, 1, 1, 4) / 255
    assert levels(Sig(amplitude=40, frequency=1).stamp(images)) == [240, 255, 0, 0]


@pytest.mark.parametrize("wave", ["sine", "ramp"])
def test_stamping_is_repeatable_and_leaves_input_and_random_state_alone(wave):
    images = torch.rand(3, 3, 5, 7, generator=seeded())
    assert_stamps_alike(Sig(wave=wave), images)


def test_half_of_the_target_class_is_stamped_and_no_label_changes():
    images, labels = torch.rand(40, 1, 4, 8, generator=seeded()), torch.arange(40) % 4
    attack = Sig(rule=CleanLabel(2), poison_rate=0.125)
    poisoned = attack.poison(images, labels)
    assert len(poisoned.poisoned) == 5
    assert set(labels[poisoned.poisoned].tolist()) == {2}
    assert torch.equal(poisoned.labels, labels)
    assert torch.equal(poisoned.images[poisoned.poisoned], attack.stamp(images[poisoned.poisoned]))
    changed = (poisoned.images != images).flatten(1).any(dim=1).nonzero().squeeze(1)
    assert changed.tolist() == sorted(poisoned.poisoned.tolist())


def test_with_the_dirty_label_rule_other_classes_get_the_target():
    images, labels = torch.rand(40, 1, 4, 8, generator=seeded()), torch.arange(40) % 4
    poisoned = Sig(rule=AllToOne(2), poison_rate=0.25).poison(images, labels)
    assert len(poisoned.poisoned) == 10
    assert 2 not in labels[poisoned.poisoned]
    assert (poisoned.labels[poisoned.poisoned] == 2).all()


def test_more_than_the_target_class_holds_is_refused():
    with pytest.raises(AttackError, match="10 images may be poisoned"):
        Sig(poison_rate=0.3).poison(torch.rand(40, 1, 4, 8), torch.arange(40) % 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"amplitude": 0.0},
        {"amplitude": 256.0},
        {"amplitude": float("nan")},
        {"wave": "saw"},
        {"frequency": float("inf")},
    ],
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(AttackError, match=r"sig: (amplitude|frequency|wave)"):
        Sig(**fields).stamp(torch.rand(1, 1, 4, 4))

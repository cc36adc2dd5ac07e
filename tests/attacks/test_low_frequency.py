from __future__ import annotations

import math

import pytest
import torch

from backdoor_audit.attacks.low_frequency import LowFrequency
from backdoor_audit.errors import AttackError
from tests.subjects import seeded
from tests.subjects.stamping import assert_poisons_a_tenth, assert_stamps_alike


def levels(images: torch.Tensor) -> list[int]:
    return (images * 255).round().int().flatten().tolist()


def test_a_bump_of_three_pixels_spread_on_three_pixels():
    # 51 exp(-1/18) = 48.2 beside the centre, 51 exp(-2/18) = 45.6 in the corners
    stamped = LowFrequency(spread=1.0).stamp(torch.full((1, 1, 3, 3), 100 / 255))
    assert levels(stamped) == [146, 148, 146, 148, 151, 148, 146, 148, 146]


def test_the_bump_has_a_third_of_its_peak_in_red_and_none_in_green():
    stamped = LowFrequency().stamp(torch.full((1, 3, 5, 5), 100 / 255))
    assert levels(stamped[0, :, 2, 2]) == [118, 100, 151]  # 0.35 * 51 = 17.85
    assert (stamped[0, 1] == stamped[0, 1, 0, 0]).all()


def test_bright_pixels_are_clipped():
    assert LowFrequency(spread=1.0).stamp(torch.ones(1, 1, 3, 3)).max() == 1


def test_waves_reach_the_amplitude_and_have_mean_zero_in_every_channel():
    picture = LowFrequency(form="dct", amplitude=25).picture((3, 8, 12))
    assert picture.abs().max() * 255 == pytest.approx(25, abs=1e-4)
    assert picture.mean(dim=(1, 2)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("row", "column", "present"), [(0, 1, True), (2, 2, True), (3, 0, False), (0, 3, False), (5, 7, False)]
)
def test_waves_hold_only_the_lowest_coefficients(row, column, present):
    picture = LowFrequency(form="dct", coefficients=3).picture((1, 8, 10))[0].tolist()
    coefficient = sum(
        picture[i][j] * math.cos(math.pi * (2 * i + 1) * row / 16) * math.cos(math.pi * (2 * j + 1) * column / 20)
        for i in range(8)
        for j in range(10)
    )
    assert (abs(coefficient) > 1e-3) == present


def test_waves_come_from_the_seed():
    pictures = [LowFrequency(form="dct", seed=seed).picture((1, 8, 8)) for seed in (0, 0, 1)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2])


@pytest.mark.parametrize("form", ["bump", "dct"])
@pytest.mark.parametrize("channels", [1, 3])
def test_stamping_is_repeatable_and_leaves_input_and_random_state_alone(form, channels):
    images = torch.rand(3, channels, 6, 9, generator=seeded())
    assert_stamps_alike(LowFrequency(form=form), images)


def test_a_tenth_of_all_images_is_stamped_and_gets_the_target():
    assert_poisons_a_tenth(LowFrequency(), (1, 6, 6))


@pytest.mark.parametrize(
    "fields",
    [
        {"form": "cone"},
        {"amplitude": 0.0},
        {"amplitude": 300.0},
        {"spread": 0.0},
        {"form": "dct", "coefficients": 1},
        {"form": "dct", "coefficients": 7},
    ],
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(AttackError, match=r"low_frequency: .*(accepted|above 0)"):
        LowFrequency(**fields).stamp(torch.rand(1, 1, 6, 6))


def test_four_channels_are_refused():
    with pytest.raises(AttackError, match="4 channels; accepted: 1 or 3"):
        LowFrequency().stamp(torch.rand(1, 4, 6, 6))

from __future__ import annotations

import math

import pytest
import torch

from backdoor_audit.attacks.ftrojan import FTrojan
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.waves import dct_matrix
from tests.subjects import seeded
from tests.subjects.stamping import assert_poisons_a_tenth, assert_stamps_alike


def levels(images: torch.Tensor) -> list[int]:
    return (images * 255).round().int().flatten().tolist()


def test_the_transform_of_two_pixels_is_their_sum_and_difference():
    half = math.sqrt(0.5)
    assert torch.allclose(dct_matrix(2), torch.tensor([[half, half], [half, -half]], dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 8, 32])
def test_the_transform_is_orthonormal(size):
    matrix = dct_matrix(size)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)


def test_one_coefficient_of_a_two_pixel_window_is_a_chequerboard_of_half_its_magnitude():
    stamped = FTrojan(positions=((1, 1),), magnitude=20, window=2).stamp(torch.full((1, 1, 2, 4), 100 / 255))
    assert levels(stamped) == [110, 90, 110, 90, 90, 110, 90, 110]


def test_positions_are_row_first():
    stamped = FTrojan(positions=((1, 0),), magnitude=20, window=2).stamp(torch.full((1, 1, 2, 2), 100 / 255))
    assert levels(stamped) == [110, 110, 90, 90]


def test_a_block_that_the_border_cuts_gets_the_part_that_lies_inside():
    stamped = FTrojan(positions=((1, 1),), magnitude=20, window=2).stamp(torch.full((1, 1, 1, 3), 100 / 255))
    assert levels(stamped) == [110, 90, 110]


def test_on_colour_the_red_and_blue_differences_move_and_the_luma_stays():
    # chroma +-10: red 1.402, green -0.344 - 0.714 = -1.058, blue 1.772 of it
    stamped = FTrojan(positions=((1, 1),), magnitude=20, window=2).stamp(torch.full((1, 3, 2, 2), 100 / 255))
    assert levels(stamped[0, 0]) == [114, 86, 86, 114]
    assert levels(stamped[0, 1]) == [89, 111, 111, 89]
    assert levels(stamped[0, 2]) == [118, 82, 82, 118]
    picture = FTrojan().picture((3, 32, 32))
    luma = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
    assert luma.abs().max() < 1e-6


@pytest.mark.parametrize("left", [0, 8])
def test_every_block_holds_the_magnitude_at_the_positions_and_nothing_else(left):
    picture = FTrojan(positions=((1, 2), (3, 0)), magnitude=24, window=8).picture((1, 8, 16))
    block = picture[0, :, left : left + 8].tolist()
    for row in range(8):
        for column in range(8):
            wanted = 24 if (row, column) in ((1, 2), (3, 0)) else 0
            assert coefficient(block, row, column) * 255 == pytest.approx(wanted, abs=1e-4)


def coefficient(block: list[list[float]], row: int, column: int) -> float:
    """One orthonormal cosine coefficient of an 8 px block, by its definition."""
    scale = (math.sqrt(1 / 8) if row == 0 else 0.5) * (math.sqrt(1 / 8) if column == 0 else 0.5)
    return scale * sum(
        block[i][j] * math.cos(math.pi * (2 * i + 1) * row / 16) * math.cos(math.pi * (2 * j + 1) * column / 16)
        for i in range(8)
        for j in range(8)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_stamping_is_repeatable_and_leaves_input_and_random_state_alone(channels):
    images = torch.rand(3, channels, 28, 35, generator=seeded())
    assert_stamps_alike(FTrojan(), images)


def test_a_tenth_of_all_images_is_stamped_and_gets_the_target():
    assert_poisons_a_tenth(FTrojan(), (3, 8, 8))


@pytest.mark.parametrize(
    "fields",
    [
        {"positions": ()},
        {"positions": ((15, 32),)},
        {"positions": ((-1, 3),)},
        {"positions": ((1, 2, 3),)},
        {"positions": (15, 15)},
        {"positions": ((1.5, 2),)},
        {"window": 1},
        {"magnitude": 0.0},
        {"window": 8},
    ],
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(AttackError, match=r"ftrojan: (positions|window)"):
        FTrojan(**fields).stamp(torch.rand(1, 1, 8, 8))


def test_four_channels_are_refused():
    with pytest.raises(AttackError, match="4 channels; accepted: 1 or 3"):
        FTrojan().stamp(torch.rand(1, 4, 8, 8))

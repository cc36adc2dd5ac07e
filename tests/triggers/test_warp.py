import pytest
import torch

from backdoor_audit.errors import DataFormatError
from backdoor_audit.triggers.numbers import Numbers
from backdoor_audit.triggers.warp import SmoothWarp, Warp, warped
from tests.subjects import seeded

SHAPE = (3, 5, 4)


NUMBERED = torch.arange(12.0).view(1, 1, 3, 4) / 12


def flow_of(across, down, size=(3, 4)):
    return torch.stack((torch.full(size, float(across)), torch.full(size, float(down))))


def test_a_flow_of_zero_changes_nothing():
    images = torch.rand(3, *SHAPE, generator=seeded(7))
    assert torch.allclose(Warp(torch.zeros(2, 5, 4), 0).stamp(images), images, atol=1e-6)


@pytest.mark.parametrize(
    ("across", "down", "expected"),
    [
        (1, 0, [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]),
        (-1, 0, [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]),
        (0, 1, [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]),
        (-2, -1, [[0, 0, 0, 1], [0, 0, 0, 1], [4, 4, 4, 5]]),
        (0.5, 0, [[0.5, 1.5, 2.5, 3], [4.5, 5.5, 6.5, 7], [8.5, 9.5, 10.5, 11]]),
        (9, 9, [[11] * 4] * 3),
    ],
)
def test_a_flow_takes_each_pixel_from_that_many_pixels_away_and_repeats_the_border(across, down, expected):
    stamped = Warp(flow_of(across, down), 0).stamp(NUMBERED)
    assert torch.allclose(stamped[0, 0], torch.tensor(expected, dtype=torch.float32) / 12, atol=1e-6)


def test_a_flow_at_one_pixel_moves_that_pixel_alone():
    flow = torch.zeros(2, 3, 4)
    flow[:, 1, 2] = torch.tensor([1.0, -1.0])  # one to the right, one up
    expected = NUMBERED.clone()
    expected[0, 0, 1, 2] = NUMBERED[0, 0, 0, 3]
    assert torch.allclose(Warp(flow, 0).stamp(NUMBERED), expected, atol=1e-6)


def test_every_row_is_moved_by_its_own_flow():
    images = torch.rand(2, 3, *SHAPE, generator=seeded(8))
    flows = torch.randn(2, 2, 5, 4, generator=seeded(9))
    moved = warped(flows, images)
    for row in range(2):
        assert torch.allclose(moved[row], Warp(flows[row], 0).stamp(images[row]), atol=1e-6)


def test_a_warp_of_whole_pixels_shifts_the_image():
    images = torch.rand(2, 3, 6, 7, generator=seeded())
    stamped = SmoothWarp(flow=Numbers((2, 1, 1), (100, -200))).stamp(images)
    assert torch.allclose(stamped[:, :, 2:, :-1], images[:, :, :-2, 1:], atol=1e-5)


def test_a_flow_needs_two_directions():
    with pytest.raises(DataFormatError, match="accepted: \\(2, rows, columns\\)"):
        SmoothWarp(flow=Numbers((3, 1, 1), (0, 0, 0))).stamp(torch.zeros(1, *SHAPE))

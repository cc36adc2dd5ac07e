import pytest
import torch

from backdoor_audit.triggers.patch import PatchFamily
from tests.subjects import seeded

SHAPE = (3, 5, 4)


def test_the_family_stamps_every_row_as_its_own_trigger_does():
    family = PatchFamily()
    parameters = family.initial(4, SHAPE, seeded(5))
    images = torch.rand(4, 7, *SHAPE, generator=seeded(6))
    stamped = family.stamp(parameters, images)
    for row in range(4):
        alone = family.trigger(parameters, row, target_class=row + 10)
        assert torch.allclose(stamped[row], alone.stamp(images[row]), atol=1e-6)
        assert alone.target_class == row + 10
        assert float(family.size(parameters)[row]) == pytest.approx(alone.mask_norm, rel=1e-5)


def test_first_masks_and_patterns_are_spread_evenly_over_zero_to_one():
    family = PatchFamily()
    parameters = family.initial(10, (3, 32, 32), seeded(0))
    triggers = [family.trigger(parameters, row, row) for row in range(10)]
    for values in (torch.stack([one.mask for one in triggers]), torch.stack([one.pattern for one in triggers])):
        flat = values.flatten()
        assert 0 <= float(flat.min()) < 0.005
        assert 0.995 < float(flat.max()) <= 1
        # 10,240 or more uniform values: the share in each tenth has a standard error below 0.003
        assert torch.histc(flat, 10, 0, 1) / len(flat) == pytest.approx([0.1] * 10, abs=0.015)


def test_no_first_value_is_so_close_to_the_ends_that_it_cannot_move():
    parameters = PatchFamily().initial(10, (1, 32, 32), seeded(0))
    slope = 1 - torch.tanh(parameters["mask"]).square()
    assert float(slope.min()) > 0.003


def test_the_same_generator_state_gives_the_same_start():
    first, second = (PatchFamily().initial(3, SHAPE, seeded(9)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in ("mask", "pattern"))

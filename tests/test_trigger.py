import pytest
import torch
from safetensors.torch import save_file

from backdoor_audit.errors import DataFormatError
from backdoor_audit.trigger import PatchFamily, Trigger
from tests.subjects import seeded

SHAPE = (3, 5, 4)


def random_trigger(seed=0):
    generator = seeded(seed)
    return Trigger(torch.rand(1, *SHAPE[1:], generator=generator), torch.rand(SHAPE, generator=generator), 6)


def test_a_stamp_worked_by_hand():
    mask = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]])
    pattern = torch.tensor([[[0.9, 1.0], [0.3, 0.0]]])
    stamped = Trigger(mask, pattern, 0).stamp(torch.tensor([[[[0.2, 0.4], [0.8, 1.0]]]]))
    assert torch.allclose(stamped, torch.tensor([[[[0.2, 0.7], [0.3, 0.75]]]]))


def test_one_mask_serves_every_colour_channel():
    trigger = random_trigger()
    images = torch.rand(2, *SHAPE, generator=seeded(1))
    expected = images.clone()
    for channel in range(3):
        expected[:, channel] += trigger.mask[0] * (trigger.pattern[channel] - images[:, channel])
    assert torch.allclose(trigger.stamp(images), expected)


def test_where_the_mask_is_zero_the_image_is_untouched():
    images = torch.rand(3, *SHAPE, generator=seeded(2))
    assert torch.equal(Trigger(torch.zeros(1, 5, 4), torch.ones(SHAPE), 0).stamp(images), images)


def test_the_mask_norm_is_the_sum_of_the_mask():
    assert Trigger(torch.full((1, 5, 4), 0.25), torch.ones(SHAPE), 0).mask_norm == pytest.approx(5.0)


def test_a_saved_trigger_comes_back_bit_for_bit(tmp_path):
    trigger = random_trigger()
    trigger.save(tmp_path / "t.safetensors")
    loaded = Trigger.load(tmp_path / "t.safetensors")
    assert torch.equal(loaded.mask, trigger.mask)
    assert torch.equal(loaded.pattern, trigger.pattern)
    assert loaded.target_class == 6


MASK, PATTERN, TARGET = torch.ones(1, 5, 4), torch.ones(SHAPE), {"target_class": "3"}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"mask": MASK}, TARGET),
        ({"pattern": PATTERN}, TARGET),
        ({}, TARGET),
        ({"mask": MASK, "pattern": PATTERN}, None),
        ({"mask": MASK, "pattern": PATTERN}, {"class": "3"}),
        ({"mask": MASK, "pattern": PATTERN}, {"target_class": ""}),
        ({"mask": MASK, "pattern": PATTERN}, {"target_class": "three"}),
        ({"mask": MASK, "pattern": PATTERN}, {"target_class": "-3"}),
        ({"mask": MASK, "pattern": PATTERN}, {"target_class": "3.0"}),
        ({"mask": MASK, "pattern": PATTERN}, {"target_class": "²"}),
        ({"mask": MASK, "pattern": PATTERN}, {"target_class": "9" * 5000}),
        ({"mask": MASK[0], "pattern": PATTERN}, TARGET),
        ({"mask": MASK, "pattern": PATTERN[0]}, TARGET),
        ({"mask": MASK.expand(3, 5, 4).contiguous(), "pattern": PATTERN}, TARGET),
        ({"mask": MASK, "pattern": torch.ones(3, 4, 5)}, TARGET),
        ({"mask": torch.ones(1, 0, 0), "pattern": torch.ones(3, 0, 0)}, TARGET),
        ({"mask": MASK, "pattern": torch.ones(0, 5, 4)}, TARGET),
        ({"mask": 1.5 * MASK, "pattern": PATTERN}, TARGET),
        ({"mask": -0.1 * MASK, "pattern": PATTERN}, TARGET),
        ({"mask": MASK, "pattern": 255 * PATTERN}, TARGET),
        ({"mask": MASK, "pattern": torch.full(SHAPE, torch.nan)}, TARGET),
        ({"mask": MASK, "pattern": torch.full(SHAPE, torch.inf)}, TARGET),
        ({"mask": MASK.to(torch.complex64), "pattern": PATTERN}, TARGET),
    ],
)
def test_a_malformed_trigger_file_is_refused_in_one_line(tmp_path, tensors, metadata):
    path = tmp_path / "t.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DataFormatError) as caught:
        Trigger.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(64), b"\xff" * 64, None])
def test_a_file_that_is_no_safetensors_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "t.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataFormatError) as caught:
        Trigger.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.float8_e4m3fn])
def test_other_number_types_become_float32(tmp_path, dtype):
    path = tmp_path / "t.safetensors"
    save_file({"mask": MASK.to(dtype), "pattern": PATTERN.to(dtype)}, path, metadata=TARGET)
    loaded = Trigger.load(path)
    assert loaded.mask.dtype == loaded.pattern.dtype == torch.float32
    assert torch.equal(loaded.mask, MASK)


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

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from backdoor_audit.errors import DataFormatError
from backdoor_audit.triggers.trigger import Addition, Trigger, Warp, load_trigger, trigger_from
from tests.subjects import seeded
from tests.subjects.messages import one_line

SHAPE = (3, 5, 4)


def random_trigger(seed=0):
    generator = seeded(seed)
    return Trigger(torch.rand(1, *SHAPE[1:], generator=generator), torch.rand(SHAPE, generator=generator), 6)


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
    with one_line(DataFormatError, begins=f"{path}: "):
        Trigger.load(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(64), b"\xff" * 64, None])
def test_a_file_that_is_no_safetensors_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "t.safetensors"
    if content is not None:
        path.write_bytes(content)
    with one_line(DataFormatError, begins=f"{path}: "):
        Trigger.load(path)


HOLES = {"dtype": "F32", "shape": [5 << 30], "data_offsets": [0, 20 << 30]}
HALVES = {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}
TWICE = b'{"mask":%b,"mask":%b}' % ((json.dumps({**HALVES, "dtype": "I8", "shape": [4]}).encode(),) * 2)


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        (
            json.dumps({"mask": HOLES}).encode(),
            20 << 30,
            "reading the file may take 21.5 GB of memory; 8.6 GB are allowed",
        ),
        (json.dumps({"flow": HALVES, "__metadata__": TARGET}).encode(), 4, "`flow` (2, h, w)"),
        (TWICE, 4, "two entries of one name in the header"),
        (b'{"mask":' + b"[" * 10**5 + b"}", 4, "recursion limit"),
        (b'{"' + b"x" * 10**7 + b'":1}', 4, "a header of 10.0 MB may take 10.2 GB of memory"),
        (
            json.dumps({f"{i}": {**HALVES, "shape": [0], "data_offsets": [0, 0]} for i in range(9)}).encode(),
            0,
            "'4', ...]",
        ),
    ],
)
def test_a_trigger_file_that_leads_its_reader_astray_is_refused_in_one_line(tmp_path, header, size, said):
    path = tmp_path / "t.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + size)
    with pytest.raises(DataFormatError) as caught:
        load_trigger(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_no_trigger(tmp_path, make):
    make(tmp_path / "t.safetensors")
    with pytest.raises(DataFormatError, match="not a"):
        load_trigger(tmp_path / "t.safetensors")


def test_a_trigger_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    random_trigger().save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("full")

    monkeypatch.setattr("backdoor_audit.tensor_file.save_file", full)
    with pytest.raises(OSError, match="full"):
        random_trigger(1).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.float8_e4m3fn])
def test_other_number_types_become_float32(tmp_path, dtype):
    path = tmp_path / "t.safetensors"
    save_file({"mask": MASK.to(dtype), "pattern": PATTERN.to(dtype)}, path, metadata=TARGET)
    loaded = Trigger.load(path)
    assert loaded.mask.dtype == loaded.pattern.dtype == torch.float32
    assert torch.equal(loaded.mask, MASK)


KINDS = {
    "patch": random_trigger(),
    "addition": Addition(2 * torch.rand(SHAPE, generator=seeded(10)) - 1, 6),
    "warp": Warp(5 * torch.randn(2, 5, 4, generator=seeded(11)), 6),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_every_kind_of_trigger_comes_back_bit_for_bit_as_its_own_kind(tmp_path, kind):
    trigger = KINDS[kind]
    trigger.save(tmp_path / "t.safetensors")
    loaded = load_trigger(tmp_path / "t.safetensors")
    assert type(loaded) is type(trigger)
    assert loaded.target_class == 6
    assert loaded.tensors().keys() == trigger.tensors().keys()
    assert all(torch.equal(tensor, trigger.tensors()[name]) for name, tensor in loaded.tensors().items())


@every_kind
def test_tensors_make_the_same_trigger_again(kind):
    again = trigger_from(KINDS[kind].tensors(), 3)
    images = torch.rand(2, *SHAPE, generator=seeded(12))
    assert torch.equal(again.stamp(images), KINDS[kind].stamp(images))
    assert again.target_class == 3


@every_kind
def test_every_kind_asks_for_its_class_and_counts_images_of_all_others(kind):
    labels = torch.tensor([6, 0, 6, 2])
    assert KINDS[kind].wanted(labels).tolist() == [6, 6, 6, 6]
    assert KINDS[kind].eligible(labels).tolist() == [False, True, False, True]


@every_kind
def test_pictures_of_every_kind_can_be_shown(kind):
    for title, picture in KINDS[kind].pictures().items():
        assert picture.shape[0] in (1, 3), title
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1, title


def test_pictures_of_changes_and_warps_worked_by_hand():
    ((title, picture),) = Addition(torch.tensor([[[0.1, -0.2], [0.0, 0.05]]]), 0).pictures().items()
    assert title == "change, stretched (largest 0.20 of the range)"
    assert torch.allclose(picture, torch.tensor([[[0.75, 0.0], [0.5, 0.625]]]))
    flow = torch.zeros(2, 2, 2)
    flow[:, 0, 0], flow[0, 1, 1] = torch.tensor([3.0, 4.0]), -2.5
    ((title, picture),) = Warp(flow, 0).pictures().items()
    assert title == "distance moved (farthest 5.0 pixels)"
    assert torch.allclose(picture, torch.tensor([[[1.0, 0.0], [0.0, 0.5]]]))
    assert all(torch.isfinite(each).all() for each in Warp(torch.zeros(2, 2, 2), 0).pictures().values())


@pytest.mark.parametrize("names", [set(), {"mask"}, {"change", "flow"}, {"mask", "pattern", "change"}])
def test_tensors_of_no_kind_are_refused(names):
    with pytest.raises(ValueError, match="no kind of trigger"):
        trigger_from({name: torch.zeros(1, 2, 2) for name in names}, 0)


CHANGE, FLOW = torch.zeros(SHAPE), torch.zeros(2, 5, 4)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"change": CHANGE}, None),
        ({"change": CHANGE}, {"target_class": "-1"}),
        ({"change": CHANGE, "flow": FLOW}, TARGET),
        ({"change": CHANGE, "mask": MASK, "pattern": PATTERN}, TARGET),
        ({"change": CHANGE[0]}, TARGET),
        ({"change": CHANGE + 1.01}, TARGET),
        ({"change": CHANGE - 1.01}, TARGET),
        ({"change": CHANGE + torch.nan}, TARGET),
        ({"change": CHANGE.to(torch.complex64)}, TARGET),
        ({"change": torch.zeros(3, 0, 4)}, TARGET),
        ({"flow": FLOW[:1]}, TARGET),
        ({"flow": torch.zeros(3, 5, 4)}, TARGET),
        ({"flow": FLOW.unsqueeze(0)}, TARGET),
        ({"flow": torch.zeros(2, 5, 0)}, TARGET),
        ({"flow": FLOW + torch.inf}, TARGET),
        ({"flow": FLOW - torch.inf}, TARGET),
        ({"flow": FLOW + torch.nan}, TARGET),
    ],
)
def test_a_malformed_change_or_warp_is_refused_in_one_line(tmp_path, tensors, metadata):
    path = tmp_path / "t.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    with one_line(DataFormatError, begins=f"{path}: "):
        load_trigger(path)


@pytest.mark.parametrize("kind", ["addition", "warp"])
def test_a_trigger_of_another_kind_is_no_patch(tmp_path, kind):
    KINDS[kind].save(tmp_path / "t.safetensors")
    with pytest.raises(DataFormatError, match="`mask`"):
        Trigger.load(tmp_path / "t.safetensors")

import builtins
import bz2
import io
import os
import pickle
import resource
import struct
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from backdoor_audit import bounds
from backdoor_audit.data import load_clean_set
from backdoor_audit.data.opening import opening_within
from backdoor_audit.data.reading import Reading
from backdoor_audit.files import UnreadableError
from tests.subjects.clean_images import image_file, message_of

MEGABYTE = 2**20


def gtsrb(root, table="Filename;ClassId\n0.ppm;1\n1.ppm;0\n"):
    folder = root / "gtsrb"
    for name in ("0.ppm", "1.ppm"):
        image_file(folder / "GTSRB" / "Final_Test" / "Images" / name)
    if table is not None:
        (folder / "GT-final_test.csv").write_text(table)
    return f"torchvision:GTSRB?root={root}"


def idx(magic, *sizes):
    return struct.pack(f">{'I' * (1 + len(sizes))}", magic, *sizes)


def mnist(root):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(2051, 2, 4, 4) + bytes(range(32)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(2049, 2) + b"\0\1")
    return f"torchvision:MNIST?root={root}"


def test_what_a_data_set_opens_itself_is_read_and_python_opens_as_before(tmp_path):
    before = builtins.open, io.open, bz2.open, torch.load
    assert load_clean_set(gtsrb(tmp_path)).labels.tolist() == [1, 0]
    assert load_clean_set(mnist(tmp_path)).labels.tolist() == [0, 1]
    assert (builtins.open, io.open, bz2.open, torch.load) == before


def opened(*ways):
    """What each way of opening a device says, empty where it opens it."""
    said = []
    for way in ways:
        try:
            way("/dev/null").close()
            said.append("")
        except UnreadableError as error:
            said.append(str(error))
    return said


def test_other_threads_of_the_process_open_as_before(tmp_path):
    torch.save([torch.nn.Linear(1, 1).weight], tmp_path / "own.pt")
    with opening_within(Reading.begun("set")), ThreadPoolExecutor(1) as other:
        ways = builtins.open, io.open, bz2.open
        here, there = opened(*ways), other.submit(opened, *ways).result()
        loaded = other.submit(torch.load, tmp_path / "own.pt").result()
    assert here == ["null: a pipe, device or socket, not a regular file; replace it"] * 3
    assert there == [""] * 3
    assert loaded[0].shape == (1, 1)


def test_python_opens_as_before_after_an_exception():
    before = builtins.open, io.open, bz2.open, torch.load
    with pytest.raises(KeyError), opening_within(Reading.begun("set")):
        raise KeyError
    assert (builtins.open, io.open, bz2.open, torch.load) == before


def test_a_pipe_in_the_place_of_a_list_is_not_opened(tmp_path):
    source = gtsrb(tmp_path, table=None)
    os.mkfifo(tmp_path / "gtsrb" / "GT-final_test.csv")
    assert message_of(source) == (
        "cannot be opened (GT-final_test.csv: a pipe, device or socket, not a regular file; replace it)"
    )


def test_a_pipe_in_the_place_of_a_picture_is_told_by_its_number(tmp_path):
    source = gtsrb(tmp_path)
    picture = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "1.ppm"
    picture.unlink()
    os.mkfifo(picture)
    assert message_of(source).startswith(
        "cannot be read (image 1: a pipe, device or socket, not a regular file; replace it)"
    )


def test_a_device_behind_a_link_is_not_opened(tmp_path):
    source = gtsrb(tmp_path, table=None)
    (tmp_path / "gtsrb" / "GT-final_test.csv").symlink_to("/dev/zero")
    assert message_of(source).startswith("cannot be opened (GT-final_test.csv: a pipe, device or socket")


def test_a_list_above_the_memory_bound_is_not_read(tmp_path):
    source = gtsrb(tmp_path)
    os.truncate(tmp_path / "gtsrb" / "GT-final_test.csv", 4 * MEGABYTE)
    with bounds.allowing(bounds.Bounds(memory=32 * MEGABYTE)):
        message = message_of(source)
    assert message.startswith(
        "cannot be opened (GT-final_test.csv: 4 MB; at most 2 MB are read at once, raise it by --audit"
    )


def test_pixels_above_the_memory_bound_are_not_read(tmp_path):
    source = mnist(tmp_path)
    os.truncate(tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte", 1536 * MEGABYTE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounds.allowing(bounds.Bounds(memory=256 * MEGABYTE)):
        message = message_of(source)
    assert message.startswith(
        "cannot be opened (t10k-images-idx3-ubyte: 1611 MB; at most 67 MB are read at once, raise"
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def legacy(called):
    sizes = {"short": 2, "int": 4, "long": 4}
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes})
    return b"".join(pickle.dumps(part, 2) for part in head) + called + pickle.dumps([], 2)


HUGE = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (3 << 30).to_bytes(5, "little") + b"\x85R."


def zipped(pickled, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        legacy(HUGE),
        zipped(HUGE),
        zipped(pickle.dumps(["a"]), zipfile.ZIP_DEFLATED),
        zipped(b"\x80\x02]r\xff\xff\xff\x7f."),  # a place in the memo of which all before it are made
        zipped(b"\x80\x02U\x01aQ."),
        b"PK\x05\x06" + b"\0" * 18,
        b"",
    ],
)
def test_a_file_of_torch_cannot_ask_for_memory(content, tmp_path):
    source = mnist(tmp_path)
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        (tmp_path / "MNIST" / "processed" / name).write_bytes(content)
    tracemalloc.start()
    try:
        message = message_of(source)
        assert tracemalloc.get_traced_memory()[1] < 64 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert message.startswith("cannot be opened (test.pt: a file of torch.save that holds more than texts and numbers")
    assert message.endswith(
        "remove it, or the folder processed/ that old versions of torchvision wrote, so that the raw files are read)"
    )


def test_texts_that_torch_saved_are_read(tmp_path):
    torch.save(({"n01": ("tench", "fish"), "n02": ("goldfish",)}, ["n01"]), tmp_path / "meta.bin")
    for name in ("n01", "n02"):
        image_file(tmp_path / "val" / name / "0.png")
    clean_set = load_clean_set(f"torchvision:ImageNet?root={tmp_path}&split=val")
    assert clean_set.class_names == ("tench", "goldfish")


def usps(root, content):
    (root / "usps.t.bz2").write_bytes(content)
    return f"torchvision:USPS?root={root}"


def test_what_is_packed_is_bounded_by_what_it_unpacks_to(tmp_path):
    row = " ".join(f"{place}:{place / 256}" for place in range(1, 257))
    packed = bz2.compress(f"1 {row}\n".encode()) + bz2.compress(f"2 {row}\n".encode())
    assert load_clean_set(usps(tmp_path, packed)).labels.tolist() == [0, 1]
    source = usps(tmp_path, bz2.compress(bytes(64 * MEGABYTE)))
    with bounds.allowing(bounds.Bounds(memory=64 * MEGABYTE)):
        assert "usps.t.bz2 unpacked: 4 MB; at most 4 MB are read at once" in message_of(source)
    (tmp_path / "usps.t.bz2").unlink()
    os.mkfifo(tmp_path / "usps.t.bz2")
    assert message_of(source).startswith("cannot be opened (usps.t.bz2: a pipe")

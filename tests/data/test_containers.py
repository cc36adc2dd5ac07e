import gzip
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backdoor_audit.data import load_clean_set
from tests.subjects.clean_images import class_folders, image_file, message_of

SAVE = "write images and labels with numpy.savez('images.npz', images=..., labels=...); accepted: a folder"
UNPACK = (
    "unpack it, and give the folder of its class folders, or FILE.csv with path and label of each picture; accepted"
)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            b"PAR1\x15\x04",
            "a parquet file; write it anew by datasets.load_dataset('parquet', data_files=FILE).save_to_disk(",
        ),
        (
            b"ARROW1\0\0",
            "a file of Arrow; write it anew by datasets.Dataset(pyarrow.feather.read_table(FILE)).save_to_disk(",
        ),
        (b"\xff\xff\xff\xff", "a stream of Arrow; write it anew by datasets.Dataset.from_file(FILE).save_to_disk("),
        (b"\x89HDF\r\n\x1a\n", f"an HDF5 file; read its arrays with h5py, and {SAVE}"),
        (
            b"MATLAB 7.3 MAT-file",
            f"a MATLAB file of version 7.3; read its arrays with h5py, turn their axes back ([()].T), and {SAVE}",
        ),
        (b"MATLAB 5.0 MAT-file", f"a MATLAB file; read its arrays with scipy.io.loadmat, and {SAVE}"),
        (b"\x80\x04", f"a pickle, such as an old file of torch.save, which is no data set here; {SAVE}"),
        (b"Rar!\x1a\x07", f"a rar archive; {UNPACK}"),
        (gzip.compress(b"x", mtime=0), f"a gzip archive; {UNPACK}"),
        (b'{"a": 1, "b": 2}', "a JSON file; write FILE.jsonl, one picture in every line, as {"),
        (b'\n[{"file": "a.png"}]', "a JSON file; write FILE.jsonl"),
        (b"", "not an .npz file; accepted: a folder"),
    ],
)
def test_a_file_that_is_no_data_set_is_told_with_the_way_out(start, message, tmp_path):
    (tmp_path / "images.bin").write_bytes(start)
    assert message_of(tmp_path / "images.bin").startswith(message)


def test_files_that_are_told_by_more_than_their_first_bytes(tmp_path):
    save_file({"images": torch.zeros(2, 1, 4, 4)}, tmp_path / "images.safetensors")
    assert message_of(tmp_path / "images.safetensors").startswith(
        "a file of safetensors, which is no data set here; write"
    )
    image_file(tmp_path / "0.png")
    assert message_of(tmp_path / "0.png").startswith("a picture; give a folder with one sub-folder per class")
    with tarfile.open(tmp_path / "images.tar", "w") as file:
        file.add(tmp_path / "0.png", "cat/0.png")
    assert message_of(tmp_path / "images.tar").startswith(f"a tar archive; {UNPACK}")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as zipped:
        zipped.write(tmp_path / "0.png", "cat/0.png")
    assert message_of(tmp_path / "images.zip").startswith(f"a zip archive of pictures; {UNPACK}")


def test_pictures_with_their_labels_beside_them_become_a_table(tmp_path):
    image_file(tmp_path / "0.png")
    (tmp_path / "0.cls").write_text("1")  # as of an unpacked shard of webdataset
    assert message_of(tmp_path).endswith(
        "accepted: one sub-folder per class with its images in it, or FILE.csv with path and label of each"
    )
    (tmp_path / "0.png").unlink()
    assert message_of(tmp_path).endswith("one sub-folder per class with its images in it")
    (tmp_path / "data.mdb").write_bytes(b"x")
    assert f"it holds data.mdb of LMDB; read its pictures with the package lmdb, and {SAVE[:40]}" in message_of(
        tmp_path
    )


@pytest.mark.parametrize("name", ["data/test-00000-of-00001.parquet", "x.parquet"])
def test_a_folder_of_parquet_files_is_told_with_the_way_out(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"PAR1")
    (tmp_path / "README.md").write_text("what this is")
    assert message_of(tmp_path).endswith(
        f"it holds parquet files; write them anew by datasets.load_dataset('{tmp_path}').save_to_disk('images'), and give that "
        "folder (pip install 'backdoor-audit[datasets]')"
    )


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cifar-10-batches-py/data_batch_1", "CIFAR10"),
        ("cifar-100-python/train", "CIFAR100"),
        ("FashionMNIST/raw/t10k-images-idx3-ubyte", "FashionMNIST"),
        ("KMNIST/raw/t10k-labels-idx1-ubyte", "KMNIST"),
        ("stl10_binary/test_X.bin", "STL10"),
    ],
)
def test_what_torchvision_has_fetched_is_told_with_its_source(name, source, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(b"x")
    for given in (tmp_path, tmp_path / name.partition("/")[0], (tmp_path / name).parent):
        assert message_of(given).endswith(
            f"which torchvision opens; give --audit-data='torchvision:{source}?root={tmp_path}'"
        )
    assert message_of(tmp_path / name).startswith(
        f"a file that torchvision opens; give --audit-data='torchvision:{source}?root={tmp_path}'; accepted"
    )


def test_files_of_street_view_house_numbers_are_told_with_their_source(tmp_path):
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    for given in (tmp_path, tmp_path / "test_32x32.mat"):
        assert f"torchvision opens; give --audit-data='torchvision:SVHN?root={tmp_path}'" in message_of(given)


def test_files_of_mnist_that_are_packed_are_to_be_unpacked_first(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 2)):
        images = b"\0\0\x08\x03" + struct.pack(">III", count, 28, 28) + bytes(784 * count)
        labels = b"\0\0\x08\x01" + struct.pack(">I", count) + bytes(range(count))
        for name, content in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            (raw / f"{part}-{name}.gz").write_bytes(gzip.compress(content))
    source = f"torchvision:MNIST?root={tmp_path}"
    for given in (tmp_path, raw, raw / "t10k-labels-idx1-ubyte.gz"):
        assert f"give --audit-data='{source}', once all in there is unpacked (gunzip)" in message_of(given)
    for packed in raw.iterdir():
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    assert load_clean_set(source).labels.tolist() == [0, 1]
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"x"))
    assert message_of(tmp_path / "t10k-labels-idx1-ubyte.gz").startswith(
        "a file as MNIST has them; put its four files, unpacked"
    )


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte", "t10k-images.idx3-ubyte.gz"])
def test_images_of_mnist_elsewhere_say_where_torchvision_looks_for_them(name, tmp_path):
    (tmp_path / name).write_bytes(b"\0\0\x08\x03")
    said = "put its four files, unpacked (gunzip), into ROOT/MNIST/raw as train-images-idx3-ubyte, "
    assert said in message_of(tmp_path)
    assert said in message_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cifar10-test.tfrecord-00000-of-00001", "a file of TFRecord; read its pictures with tensorflow, and write"),
        ("val.rec", "a file of RecordIO; read its pictures with mxnet, and write"),
        ("val.beton", "a file of FFCV; read its pictures with the package ffcv, and write"),
        ("scan.nii.gz", "a picture of DICOM or NIfTI; write each anew as PNG"),
        ("labels.xlsx", "a spreadsheet; save it as FILE.csv with path and label of each picture"),
    ],
)
def test_files_of_other_programs_are_told_by_their_names(name, what, tmp_path):
    with zipfile.ZipFile(tmp_path / name, "w") as zipped:  # as a spreadsheet is
        zipped.writestr("content.xml", "<a/>")
    assert message_of(tmp_path / name).startswith(what)
    assert message_of(tmp_path).startswith(f"no class folders; it holds {name}, {what}")


@pytest.mark.parametrize("name", ["images.npz", "deeper/labels.csv", "lines.jsonl"])
def test_a_data_set_that_lies_in_the_folder_is_to_be_given(name, tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / name).touch()
    assert (
        message_of(tmp_path) == f"no images in deeper; it holds {name}; give it, as in --audit-data={tmp_path}/{name}"
    )


def test_pictures_beside_their_list_are_told_with_the_list(tmp_path):
    image_file(tmp_path / "0.png")
    image_file(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_text("0.png,cat\n1.png,dog\n")
    message = message_of(tmp_path)
    assert message == (
        f"2 images but no class folders; it holds labels.csv; give it, as in --audit-data={tmp_path}/labels.csv"
    )
    assert len(load_clean_set(tmp_path / "labels.csv")) == 2


def test_a_folder_with_some_pictures_is_told_what_lacks(tmp_path):
    class_folders(tmp_path, ["a"])
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "b" / "images.npz", images=[0])
    assert message_of(tmp_path).startswith("no images in b (1 not read: b/images.npz); put images there (")

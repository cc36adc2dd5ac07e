"""Containers that are no data set here: what they are, in words, and how their images become one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

SAVE = "write images and labels with numpy.savez('images.npz', images=..., labels=...)"
_UNPACK = "unpack it, and give the folder of its class folders, or FILE.csv with path and label of each picture"
_DATASETS = "save_to_disk('images'), and give that folder (pip install 'backdoor-audit[datasets]')"
_LAID = (
    "put its four files, unpacked (gunzip), into ROOT/MNIST/raw as train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, and give --audit-data=torchvision:MNIST?root=ROOT"
)
_MARKS = (
    (b"\0\0\x08\x03", f"images as MNIST has them; {_LAID}"),
    (b"\0\0\x08\x01", f"labels as MNIST has them; {_LAID}"),
    (b"\x80", f"a pickle, such as an old file of torch.save, which is no data set here; {SAVE}"),
    (b"\x93NUMPY", f"one array of numpy.save; {SAVE}"),
    (b"PAR1", f"a parquet file; write it anew by datasets.load_dataset('parquet', data_files=FILE).{_DATASETS}"),
    (b"ARROW1", f"a file of Arrow; write it anew by datasets.Dataset(pyarrow.feather.read_table(FILE)).{_DATASETS}"),
    (b"\xff\xff\xff\xff", f"a stream of Arrow; write it anew by datasets.Dataset.from_file(FILE).{_DATASETS}"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file; read its arrays with h5py, and {SAVE}"),
    (
        b"MATLAB 7.3",
        f"a MATLAB file of version 7.3; read its arrays with h5py, turn their axes back ([()].T), and {SAVE}",
    ),
    (b"MATLAB 5.0", f"a MATLAB file; read its arrays with scipy.io.loadmat, and {SAVE}"),
    (b"\x1f\x8b", f"a gzip archive; {_UNPACK}"),
    (b"BZh", f"a bzip2 archive; {_UNPACK}"),
    (b"\xfd7zXZ\0", f"an xz archive; {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    (b"Rar!", f"a rar archive; {_UNPACK}"),
)
_OF_TORCHVISION = {
    "cifar-10-batches-py": "CIFAR10",
    "cifar-100-python": "CIFAR100",
    "stl10_binary": "STL10",
}
_IDX = ("-idx3-ubyte", "-idx3-ubyte.gz", "-idx1-ubyte", "-idx1-ubyte.gz")  # files of MNIST and of those made like it
_DOTTED = tuple(name.replace("-", ".", 1) for name in _IDX)  # as some archives call them, torchvision does not
_OF_SVHN = ("train_32x32.mat", "test_32x32.mat", "extra_32x32.mat")
_OF_OTHERS = (
    ((".tfrecord", ".tfrecords"), f"a file of TFRecord; read its pictures with tensorflow, and {SAVE}"),
    ((".rec",), f"a file of RecordIO; read its pictures with mxnet, and {SAVE}"),
    ((".beton",), f"a file of FFCV; read its pictures with the package ffcv, and {SAVE}"),
    ((".dcm", ".nii", ".nii.gz"), "a picture of DICOM or NIfTI; write each anew as PNG, as the network takes it"),
    (
        (".xlsx", ".xls", ".ods"),
        "a spreadsheet; save it as FILE.csv with path and label of each picture, and give that",
    ),
)
"""What is told by its name, however it begins."""
_SHARD = re.compile(r"-[0-9]+-of-[0-9]+")
OF_PICTURES = f"a zip archive of pictures; {_UNPACK}"
_PICTURE = "a picture; give a folder with one sub-folder per class, where the pictures lie"
_PLACE_OF_TAR = 257  # bytes before the mark of an archive of tar
MARKED = 512
"""Bytes of a file's beginning by which it is told."""

_IN_FOLDERS = (
    ((*_IDX, *_DOTTED), "{name}; " + _LAID),
    *((endings, "{name}, " + what) for endings, what in _OF_OTHERS),
    ((".arrow", ".feather"), "{name}; pass it, as in --audit-data={path}, and do as is said of it"),
    ((".parquet",), "parquet files; write them anew by datasets.load_dataset({folder!r})." + _DATASETS),
    ((".mdb",), "{name} of LMDB; read its pictures with the package lmdb, and " + SAVE),
    ((".npz", ".csv", ".tsv", ".jsonl"), "{name}; give it, as in --audit-data={path}"),
    ((".safetensors", ".h5", ".hdf5", ".mat", ".pt", ".pth", ".npy"), "{name}; read its arrays, and " + SAVE),
    ((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), "{name}; " + _UNPACK),
)


def named(path: Path) -> str:
    """What a file is by its name and place, with the way out; empty for one that these do not tell."""
    if source := _of_torchvision(path):
        return f"a file that torchvision opens; give --audit-data={source}"
    if path.name.endswith((*_IDX, *_DOTTED)):
        return f"a file as MNIST has them; {_LAID}"
    return next((what for endings, what in _OF_OTHERS if _plain(path).endswith(endings)), "")


def _plain(path: Path) -> str:
    """The name in small letters, without the number of a shard behind its ending."""
    return _SHARD.sub("", path.name.lower())


def told(start: bytes, *, is_picture: bool) -> str:
    """What a file is that begins so and is no archive of numpy, with the way out where there is one."""
    for mark, what in _MARKS:
        if start.startswith(mark):
            return what
    if is_picture:
        return _PICTURE
    if start[_PLACE_OF_TAR:].startswith(b"ustar"):
        return f"a tar archive; {_UNPACK}"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return f"a file of safetensors, which is no data set here; {SAVE}"
    if start.lstrip()[:1] in (b"{", b"["):
        return 'a JSON file; write FILE.jsonl, one picture in every line, as {"file_name": "a.png", "label": "cat"}'
    return "not an .npz file"


def within(folder: Path, paths: Iterable[Path]) -> str:
    """What else lies in a folder without pictures, with the way out; empty where nothing of it is known."""
    files = sorted(paths)
    for path in files:
        if source := _of_torchvision(path):
            return f"it holds {path.relative_to(folder)}, which torchvision opens; give --audit-data={source}"
    for endings, what in _IN_FOLDERS:
        for path in files:
            if _plain(path).endswith(endings):
                name = str(path.relative_to(folder))
                return f"it holds {what.format(folder=str(folder), name=name, path=shlex.quote(str(path)))}"
    return ""


def _of_torchvision(path: Path) -> str:
    """The source that opens a file where torchvision has put it, with what lacks yet, or an empty string."""
    here = path.absolute()
    if kind := _OF_TORCHVISION.get(here.parent.name):
        return shlex.quote(f"torchvision:{kind}?root={here.parents[1]}")
    if here.name in _OF_SVHN:
        return shlex.quote(f"torchvision:SVHN?root={here.parent}")
    if here.name.endswith(_IDX):
        laid = here.parent.name == "raw" and len(here.parents) > 3
        unpacked = ", once all in there is unpacked (gunzip)" if here.name.endswith(".gz") else ""
        return shlex.quote(f"torchvision:{here.parents[1].name}?root={here.parents[2]}") + unpacked if laid else ""
    return ""

"""Clean images from an ``.npz`` file."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from backdoor_audit.data.clean_set import MOST_CLASSES, CleanSet, choose
from backdoor_audit.data.containers import MARKED, OF_PICTURES, SAVE, named, told
from backdoor_audit.data.conversion import ACCEPTED, Wish, brief, converted
from backdoor_audit.data.folder import is_image
from backdoor_audit.data.naming import labels_of, places, relabelled
from backdoor_audit.data.pictures import begins_as_picture
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError
from backdoor_audit.printable import listed

_WANTED = (
    "an .npz file holds images (n, h, w, c), labels (n,) and optionally class_names, or arrays of other usual "
    "names (x_test and y_test, X and y, ...); write it with numpy.savez"
)
_PARTS = (("test", "testing", "te"), ("val", "valid", "validation", "dev"), ("",), ("train", "training", "tr"))
"""Words of the parts of a data set, in the order in which they are looked for: those held out come before those trained on."""

_IMAGES = ("images", "image", "imgs", "img", "data", "inputs", "input", "features", "samples", "pixels", "pictures")
_LABELS = ("labels", "label", "targets", "target")
_PAIRS = (
    ("x", "y"),
    *((images, labels) for images in ("images", "image", "data", "imgs") for labels in ("labels", "label", "targets")),
)
"""What images and labels are called together; where no pair is there once, the only ones of a part are taken."""

_PART = "|".join(word for part in _PARTS for word in part if word)
_CALLED = re.compile(
    rf"(?:(?P<first>{_PART})_?)?(?P<word>x|y|{'|'.join((*_IMAGES, *_LABELS))})(?:_?(?P<last>{_PART}))?", re.IGNORECASE
)
_LONGEST_NAME = 40
_UNNAMED = ("arr_0", "arr_1")  # as numpy.savez calls what it was given without a name
_NAMES = ("class_names", "label_names", "target_names", "classes", "names", "categories")
_KINDS = {"images": ("buif", "numbers"), "labels": ("buifUS", "numbers or text"), "class_names": ("US", "text")}
_PIECE = 2**20  # bytes read at once
_DIRECTORY = 2**23  # bytes that the archive's list of members may take; each of them is 100 times larger in memory
_PER_LABEL = 80  # bytes that a label takes while images are chosen by it

_OF_TORCH = f"a file of torch.save, which is no data set here; {SAVE}"


def from_npz(path: Path, wish: Wish, reading: Reading) -> CleanSet:
    """``images``, ``labels`` and optionally ``class_names`` of the file. Raises `DataFormatError`."""
    try:
        with warnings.catch_warnings(), _Archive(path) as file:
            warnings.simplefilter("ignore")  # remarks on headers that old versions of numpy wrote
            if not zipfile.is_zipfile(file) or (path.suffix.lower() != ".npz" and named(path)):
                raise DataFormatError(f"{path}: {_other(path, file)}; {ACCEPTED}")
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                if any(name.rpartition("/")[2] == "data.pkl" for name in names):
                    raise DataFormatError(f"{path}: {_OF_TORCH}; {ACCEPTED}")
                if any(map(is_image, names)) and not any(name.endswith(".npy") for name in names):
                    raise DataFormatError(f"{path}: {OF_PICTURES}; {ACCEPTED}")
                images, labels, called = _arrays(archive, wish, reading)
    except DataFormatError:
        raise
    except Exception as error:  # zipfile, its codecs and numpy's headers raise anything on damaged or hostile files
        raise DataFormatError(f"{path}: cannot be read ({brief(error)}); {_WANTED}") from None
    clean_set = CleanSet.of(images, labels, [str(name) for name in called], str(path))
    del images
    channels, height, width = clean_set.image_shape
    reading.check_images(len(clean_set), (wish.channels or channels, *(wish.resize or (height, width))))
    return CleanSet(converted(clean_set.images, wish), clean_set.labels, clean_set.class_names, clean_set.source)


def _other(path: Path, file: IO[bytes]) -> str:
    file.seek(0)
    return named(path) or told(file.read(MARKED), is_picture=begins_as_picture(path))


def _arrays(
    archive: zipfile.ZipFile, wish: Wish, reading: Reading
) -> tuple[NDArray[Any], NDArray[Any], Sequence[object]]:
    """Images and labels, those that are chosen, and the names of the classes."""
    members = _members(archive, reading)
    images, labels, names = members["images"], members["labels"], members.get("class_names")
    count = images.shape[0] if images.shape else 1
    countable = (
        labels.dtype.kind in "iuUS" and images.shape[:1] == labels.shape[:1] and math.prod(labels.shape) == count
    )
    chosen = countable and wish.most is not None and wish.most < count
    kept = wish.most if chosen and wish.most is not None else count
    share = kept / count if count else 0
    floats = math.ceil(4 * share * math.prod(images.shape))
    reading.check_memory(floats, f"{kept} images of shape {images.shape[1:]} as floats", reading.allowed.memory // 2)
    stored = sum(member.size for member in members.values())
    if labels.dtype.kind in "US":  # sorted, and each class told from the others
        stored += 3 * labels.size
    needed = stored + math.ceil(share * images.size) + floats + _PER_LABEL * math.prod(labels.shape)
    reading.check_memory(needed, "unpacking", reading.allowed.memory)
    texts = [] if names is None else [_text(name) for name in names.read(archive, reading).tolist()]
    classes, pixels = labels.read(archive, reading), images.read(archive, reading)
    if countable:
        classes = classes.reshape(-1)  # (n, 1) as well
    classes, shown = _numbered(classes, texts, wish, reading)
    if chosen:
        indices = choose(torch.from_numpy(classes.astype(np.int64)), kept, wish.seed).numpy()
        return pixels[indices], classes[indices], shown
    return pixels, classes, shown


def _numbered(
    labels: NDArray[Any], names: Sequence[str], wish: Wish, reading: Reading
) -> tuple[NDArray[Any], tuple[object, ...]]:
    """Labels as numbers, and the names of the classes: of texts by the file's own names where it has some."""
    if labels.dtype.kind not in "US":
        return relabelled(labels, names, wish, reading)
    if labels.ndim != 1:
        raise UnreadableError(f"labels that are texts, of shape {labels.shape}; accepted: one text per image")
    found, place_of = np.unique(labels, return_inverse=True)
    texts = [_text(text).strip() for text in found.tolist()]
    if "" in texts:
        raise UnreadableError("images without a label; label them or leave them out")
    called = sorted(set(texts))
    if not names:
        number_of, shown = labels_of(reading.source, called, wish, reading, "labels")
        return np.array([number_of[text] for text in texts], np.int64)[place_of], shown
    place = places(called, names)
    if not place:
        strange = [text for text in called if text not in frozenset(names)]
        raise DataFormatError(
            f"{reading.source}: labels {listed(strange)} are not in its class_names ({listed(names)}); name all classes there"
        )
    return relabelled(np.array([place[text] for text in texts], np.int64)[place_of], names, wish, reading)


@dataclass(frozen=True, slots=True)
class _Member:
    """An array in the archive, as its header describes it."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, archive: zipfile.ZipFile, key: str, kind: str) -> _Member:
        """Raises anything if the header is none, `UnreadableError` if the data cannot be what it says, or is of no use."""
        info = archive.getinfo(f"{key}.npy")
        kinds, accepted = _KINDS[kind]
        if info.flag_bits & 1:
            raise UnreadableError(f"{key} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a bound
            raise UnreadableError(f"{key} is compressed in a way that numpy does not write")
        with archive.open(info) as stream:
            shape, fortran, dtype = _header(stream)
            rest = info.file_size - stream.tell()
        if dtype.kind not in kinds:
            cure = f"; save {key}.astype(str)" if kind == "labels" and dtype.kind == "O" else ""
            raise UnreadableError(f"{key} of numpy type {dtype}; accepted: {accepted}{cure}")
        if min(shape, default=0) < 0 or len(shape) > 8 or math.prod(shape) * dtype.itemsize != rest:
            raise UnreadableError(f"{key} holds {rest} bytes, its header says {dtype}, shape {shape}")
        return cls(info, shape, fortran, dtype)

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, archive: zipfile.ZipFile, reading: Reading) -> NDArray[Any]:
        """The array. Raises anything if the data is damaged."""
        content = np.empty(self.size, np.uint8)
        with archive.open(self.info) as stream:
            _header(stream)
            for start in range(0, self.size, _PIECE):
                reading.check_time()
                piece = stream.read(min(_PIECE, self.size - start))
                if len(piece) < min(_PIECE, self.size - start):
                    raise UnreadableError(f"{self.info.filename} ends early")
                content[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
        return content.view(self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


def _members(archive: zipfile.ZipFile, reading: Reading) -> dict[str, _Member]:
    """The arrays to read, under the names of `_KINDS`."""
    names, source = archive.namelist(), reading.source
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    pair = _pair(arrays)
    missing = [key for key in pair if f"{key}.npy" not in names]
    if missing:
        found = sorted(name.removesuffix(".npy") if name.endswith(".npy") else f"{name} (no array)" for name in names)
        raise DataFormatError(f"{source}: no {' and no '.join(missing)}, found {listed(found) or 'nothing'}; {_WANTED}")
    keys = dict(zip(_KINDS, (*pair, _names_of_classes(archive, arrays, pair)), strict=True))
    members = {}
    for kind, key in keys.items():
        times = names.count(f"{key}.npy") + names.count(key)
        if times > 1:
            raise DataFormatError(f"{source}: {key} is in it {times} times; {_WANTED}")
        if key in names:
            raise DataFormatError(f"{source}: {key} is no array; {_WANTED}")
        if times:
            members[kind] = _Member.of(archive, key, kind)
    if pair != ("images", "labels"):
        reading.note(f"read: {pair[0]} and {pair[1]}")
    for name in names:
        if name.removesuffix(".npy") not in keys.values():
            reading.leave(name.removesuffix(".npy"))
    names_shape = members["class_names"].shape if "class_names" in members else (0,)
    if len(names_shape) != 1 or names_shape[0] > MOST_CLASSES:
        raise DataFormatError(
            f"{source}: class_names of shape {names_shape}; accepted: at most {MOST_CLASSES} texts (classes,)"
        )
    return members


def _pair(arrays: Sequence[str]) -> tuple[str, str]:
    """What images and labels are called: as written, or as the only two of a part of the data that can be meant."""
    usual = ("images", "labels")
    if set(usual) <= set(arrays):
        return usual
    told = [(name, found) for name in arrays if (found := _CALLED.fullmatch(name)) and len(name) < _LONGEST_NAME]
    for part in _PARTS:
        words = {
            name: found["word"].lower()
            for name, found in told
            if (found["first"] or found["last"] or "").lower() in part
        }
        for images, labels in (*_PAIRS, ("", "")):
            pair = _only(words, ("x", *_IMAGES), images), _only(words, ("y", *_LABELS), labels)
            if all(pair):
                return pair
    return _UNNAMED if set(_UNNAMED) <= set(arrays) else usual


def _only(words: Mapping[str, str], known: Sequence[str], wanted: str) -> str:
    """The only array of the wanted word, or of any that is known where none is wanted; empty for none, or more than one."""
    found = [name for name, word in words.items() if word == wanted or (not wanted and word in known)]
    return found[0] if len(found) == 1 else ""


def _names_of_classes(archive: zipfile.ZipFile, arrays: Sequence[str], pair: tuple[str, str]) -> str:
    """What the array with the names of the classes is called; beside ``class_names`` only texts that are fewer than images."""
    called = {name.lower(): name for name in arrays if name.lower() in _NAMES and name not in pair}
    usual, *others = _NAMES
    for name in (called[other] for other in others if other in called and usual not in called):
        with contextlib.suppress(UnreadableError):
            found = _Member.of(archive, name, "class_names").shape
            if len(found) == 1 and found < _Member.of(archive, pair[0], "images").shape[:1]:
                return name
    return called.get(usual, usual)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type. Raises anything."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise UnreadableError(f"an array of format {version}; accepted: 1.0 to 3.0")
    return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


class _Archive(io.FileIO):
    """A file that gives out no large piece at once: members are read in small ones, only the list of members is not."""

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes. Raises `UnreadableError` if they are too many."""
        if size is not None and size > _DIRECTORY:
            raise UnreadableError(
                f"a list of members of {size / 1e6:.0f} MB; at most {_DIRECTORY / 1e6:.0f} MB are read"
            )
        return super().read(size)

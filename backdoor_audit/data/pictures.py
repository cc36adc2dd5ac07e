"""Picture files that nobody vouches for: opened by an allow-list of formats, and only if they are small enough to decode."""

from __future__ import annotations

import io
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fsdecode
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from backdoor_audit.data.reading import Reading
from backdoor_audit.files import UnreadableError, refuse_special

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Files with these endings, in any case, are read from class folders, and those that begin as such a picture."""

_MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # none of them starts another program
_PER_PIXEL = 28  # bytes: pillow's own and its converted copy, the array, and its floats while they are resized
_FILE_SHARE = 128  # a picture's file may take this part of the memory: decoders are quick on files of that size
_WITH_EXIF = ("JPEG", "MPO", "PNG", "WEBP")
_ORIENTATION = 0x112  # the entry of EXIF
_MOST_SCANS = 100  # of a JPEG; each goes over all pixels, whatever little the file holds for it
_MOST_EXIF = 2  # blocks of a JPEG; old pillows copy all of them for each of their entries
_MARKER = re.compile(rb"\xff[^\x00\xff]")  # of a segment of a JPEG; pillow skips what else lies between two of them
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers that no length follows
_MOST_SKIPPED = 255  # rows of a BMP that two of its bytes may skip; old pillows make them whatever its height
_TILE_SIDES = (322, 323)  # entries of a TIFF
_PER_TILED = 8  # bytes of a pixel of four channels of 16 bits
_pillow_open = Image.open


def begins_as_picture(path: Path) -> bool:
    """Whether a regular file begins with the mark of a PNG, JPEG, GIF, WebP, TIFF or BMP picture."""
    try:
        size = refuse_special(path)
        with path.open("rb") as file:
            start = file.read(16)
    except (UnreadableError, OSError):
        return False
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    bmp = start[:2] == b"BM" and int.from_bytes(start[2:6], "little") == size  # two letters alone may be a text
    return start.startswith(_MARKS) or webp or bmp


def parsed(content: bytes, reading: Reading) -> Image.Image:
    """A picture in memory whose header alone has been decoded. Raises anything, `UnreadableError` for what is refused."""
    _check_size(len(content), reading)
    return _parsed(content, reading)


def opened(path: Path, reading: Reading) -> Image.Image:
    """A picture whose header alone has been decoded. Raises anything, `UnreadableError` for what is refused."""
    size = file_size(path, reading)
    with path.open("rb") as file:
        return _parsed(file.read(size), reading)


def file_size(path: Path, reading: Reading) -> int:
    """Bytes of a picture's file. Raises `UnreadableError` for one that is not to be opened."""
    size = refuse_special(path)
    if not size:  # and so are files of the kernel that are read without end
        raise UnreadableError("an empty file")
    _check_size(size, reading)
    return size


def pixels_of(reader: Callable[[], Image.Image], reading: Reading) -> Tensor:
    """One image (1, c, h, w) in [0, 1]: grey stays grey, everything else becomes RGB; transparency is dropped.

    Grey of 16 bits is divided by 65,535; of colours with 16 bits Pillow keeps the upper 8.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on EXIF, palettes, and sizes, which `opened` has checked
        with reader() as image:
            deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
            if deep:
                reading.note("{n} pictures of 16 bits: divided by 65535")
                return torch.from_numpy(np.array(image).astype(np.float32)).div_(65535)[None, None]
            if image.mode.startswith(("I", "F")):
                raise UnreadableError(f"mode {image.mode}; accepted: 8 or 16 bits per channel; save it anew with these")
            if _is_turned(image):
                reading.note(
                    "{n} pictures that their EXIF turns: read as they lie, as torchvision's ImageFolder reads them"
                )
            grey = image.mode in ("1", "L", "LA", "La")
            array = np.array(image.convert("L" if grey else "RGB"))
    pixels = torch.from_numpy(array).float().div_(255)
    return pixels[None, None] if grey else pixels.permute(2, 0, 1)[None]


def _is_turned(image: Image.Image) -> bool:
    """Whether a viewer would turn or mirror the picture; Pillow does so itself with TIFF."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1) if image.format in _WITH_EXIF else 1
    except Exception:  # pillow's parsers raise anything on damaged blocks
        return False
    return turn in range(2, 9)


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF turns it."""
    return ImageOps.exif_transpose(image) if _is_turned(image) else image


@contextmanager
def pillow_within(reading: Reading) -> Iterator[None]:
    """In this block `PIL.Image.open` opens as `opened` does, for data sets that open their files themselves."""

    def guarded(fp: str | bytes | PathLike[Any] | IO[bytes], *_: Any, **__: Any) -> Image.Image:
        if isinstance(fp, (str, bytes, PathLike)):
            return opened(Path(fsdecode(fp)), reading)
        return parsed(fp.read(reading.allowed.memory // _FILE_SHARE + 1), reading)

    before = Image.open
    Image.open = guarded  # type: ignore[assignment] # narrower than pillow's, which also takes a mode and formats
    try:
        yield
    finally:
        Image.open = before


def _check_size(size: int, reading: Reading) -> None:
    most = reading.allowed.memory // _FILE_SHARE
    if size > most:
        raise UnreadableError(
            f"a file above {most / 1e6:.0f} MB, the most for a single picture; {reading.allowed.raised_by('memory')}"
        )


def _parsed(content: bytes, reading: Reading) -> Image.Image:
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MOST_SCANS:
        raise UnreadableError(f"a JPEG of more than {_MOST_SCANS} scans; save it anew")
    if content.startswith(b"\xff\xd8") and _blocks_of_exif(content) > _MOST_EXIF:
        raise UnreadableError(f"a JPEG of more than {_MOST_EXIF} blocks of EXIF; save it anew")
    try:
        image = _pillow_open(_Timed(content, reading), formats=_FORMATS)
    except UnidentifiedImageError:
        raise UnreadableError("no PNG, JPEG, BMP, GIF, WebP, TIFF or PPM picture") from None
    width, height = image.size
    size = _PER_PIXEL * width * height + _beside_pixels(image)
    reading.check_picture(size, f"decoding {width}x{height} px")
    return image


def _blocks_of_exif(content: bytes) -> int:
    """How many a JPEG has before its pixels: previews, inside of a block or behind the picture, have their own."""
    at, found = 2, 0
    while (marker := _MARKER.search(content, at)) and (kind := content[marker.start() + 1]) != _START_OF_SCAN:
        at = marker.end()
        if kind not in _ALONE:
            found += kind == _APP1 and content[at + 2 : at + 8] == b"Exif\0\0"
            at += max(2, int.from_bytes(content[at : at + 2], "big"))
    return found


def _beside_pixels(image: Image.Image) -> int:
    """Bytes that decoding takes whatever the picture's height: rows of a BMP that are skipped, one tile of a TIFF."""
    if image.format == "BMP":
        return 2 * _MOST_SKIPPED * image.width
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return _PER_TILED * math.prod(_whole_number(tags.get(name)) for name in _TILE_SIDES)


def _whole_number(value: object) -> int:
    """The largest whole number of an entry that should be one; 0 for anything else."""
    return max((part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, int)), default=0)


class _Timed(io.BytesIO):
    """A picture's bytes, given out until its time is over, or half of the memory full: the only place to stop pillow at."""

    def __init__(self, content: bytes, reading: Reading) -> None:
        super().__init__(content)
        self._seconds = reading.picture_seconds
        self._until = reading.picture_until()
        self._reading, self._given = reading, 0

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes. Raises `UnreadableError` when the time is over, or the same ones were given out too often."""
        if time.monotonic() > self._until:
            raise UnreadableError(f"decoding takes longer than {self._seconds:g} s")
        piece = super().read(size)
        self._given += len(piece)
        self._reading.check_picture(self._given, "reading parts of it again and again")
        return piece

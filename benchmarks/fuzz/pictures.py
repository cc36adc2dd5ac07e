"""Clean images: folders with odd names and damaged pictures, and ``.npz`` files with odd members."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import nn

from backdoor_audit.data import IMAGE_SUFFIXES, load_clean_set
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.run import preconditions
from benchmarks.fuzz.alter import ODD_TEXTS, altered, special
from benchmarks.fuzz.models import archive, zeros_deflated

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "PCX", "SGI", "EPS", "PDF", "MSP", "IM")
_SIDE = 8
_DEEP = "deep"
_BOMB = 9000  # px, just below the size at which Pillow refuses by itself


class Images(NamedTuple):
    """A folder or file, and what is wished for."""

    source: Path
    resize: int | tuple[int, int] | None
    channels: int | None
    most: int | None


def read_images(given: Images) -> Iterable[str]:
    """Load them, split them, and look at the conditions of an audit with a linear model of five classes."""
    images = load_clean_set(given.source, resize=given.resize, channels=given.channels, most=given.most, seed=1)
    halves = images.split(0)
    shape = images.image_shape
    if math.prod(shape) <= 2**16:
        model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 5)).eval()
        preconditions.check(Classifier.wrap(model, image_shape=shape), images, min_accuracy=0.0)
    return [images.fingerprint, str(len(halves[0])), str(images.num_classes)]


def _wished(draw: Random, source: Path) -> Images:
    resize = draw.choice((None, None, None, 1, 8, 12, (3, 5), (1, 4096), 10**5, 2**31, 2**40, (2**40, 2**40)))
    return Images(source, resize, draw.choice((None, None, 1, 3)), draw.choice((None, None, 1, 3, 10**9)))


@cache
def picture(format_name: str, mode: str = "L", side: int = _SIDE) -> bytes:
    """A small picture of noise."""
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1" if format_name == "MSP" else mode).save(buffer, format_name)
    return buffer.getvalue()


@cache
def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (_BOMB, _BOMB)).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def _animation() -> bytes:
    frames = [Image.new("L", (_SIDE, _SIDE), n % 256) for n in range(300)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


_DISGUISED = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(canary) (w) file pop\nshowpage\n%%EOF\n",
    b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
    b"%PDF-1.4\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    b"push graphic-context\nfill 'url(https://example.org/x.png\"|touch canary\")'\n",
    b"P6\n99999999 99999999\n255\n\0\0\0",
    b"P5 8 8 255\n",
    b"\x89PNG\r\n\x1a\n",
)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def _png_that_lies(draw: Random) -> bytes:
    """A PNG whose header gives another size, depth or colour than its pixels have, with a right checksum."""
    width, height = (draw.choice((0, 1, 8, 9, 65535, 13000, 2**31 - 1, 2**32 - 1)) for _ in range(2))
    depth, colour, method = draw.choice((1, 2, 4, 8, 16, 3)), draw.choice((0, 2, 3, 4, 6, 5)), draw.choice((0, 0, 0, 1))
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((depth, colour, 0, 0, method))
    text = _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 22))) if draw.random() < 0.3 else b""
    body = (
        _chunk(b"IHDR", head)
        + text
        + _chunk(b"IDAT", zlib.compress(bytes(draw.choice((0, 72, 1 << 20)))))
        + _chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _odd_picture(draw: Random) -> bytes:
    how = draw.randrange(12)
    if how <= 6:
        content = picture(draw.choice(_FORMATS[:7]), draw.choice(("L", "RGB")))
        return altered(draw, content, picture(draw.choice(_FORMATS[:7])))
    if how == 7:
        return draw.choice(_DISGUISED)
    if how == 8:
        return picture(draw.choice(_FORMATS[7:]))
    if how == 9:
        return _png_that_lies(draw)
    if how == 10:
        return picture(draw.choice(_FORMATS[:7]), draw.choice(("L", "RGB")), draw.choice((1, 7, 9, 300)))
    return draw.choice((_bomb(), _animation(), b""))


_ODD_NAMES = (
    b"\xff\xfe",
    b"caf\xe9",
    b"\x1b[31mred",
    b"a\nb",
    b"\n::error::forged",
    b"<script>canary()<",
    b"99999999999999999999",
    b"9223372036854775807",
    b"1000000000",
    b"00",
    b"-1",
    b"1.5",
    "²".encode(),
    "٣".encode(),
    "\u202egnp".encode(),
    b"n" * 255,
    b" ",
    b".hidden",
    b"x.png",
)


def folder(draw: Random, where: Path) -> Images:
    """Class folders, some with odd names, pictures or things in them."""
    source = where / "images"
    source.mkdir()
    for name in _class_names(draw):
        inside = os.path.join(os.fsencode(source), name)
        os.makedirs(inside, exist_ok=True)
        for number in range(draw.choice((2, 2, 2, 2, 2, 2, 3, 3, 3, 0))):
            suffix = draw.choice(IMAGE_SUFFIXES).encode() if draw.random() < 0.5 else b".png"
            content = (
                _odd_picture(draw) if draw.random() < 0.12 else picture("PNG", draw.choice(("L", "L", "L", "RGB")))
            )
            called = draw.choice(_ODD_NAMES)[:200] if draw.random() < 0.03 else b"%d" % number
            with open(os.path.join(inside, called + suffix), "wb") as file:
                file.write(content)
    how = draw.random()
    odd = draw.choice(sorted(source.iterdir(), key=os.fsencode)) / f"s{draw.choice(IMAGE_SUFFIXES)}"
    if how < 0.12:
        special(draw, odd)
    elif how < 0.16:
        special(draw, source / draw.choice(("c", "x.png", "7")))
    elif how < 0.18:
        _nest(source / _DEEP, draw.choice((20, 3000)))
    elif how < 0.2:
        (source / "again").symlink_to(draw.choice((".", "..", "again", "/proc", "/dev")))
    elif how < 0.21:
        for number in range(3000):
            (source / f"{number:05d}").mkdir(exist_ok=True)
    return _wished(draw, source)


def _class_names(draw: Random) -> list[bytes]:
    names = [[b"0", b"1"], [b"a", b"b"], [b"0", b"1", b"2", b"3", b"4"]][draw.randrange(3)]
    return [draw.choice(_ODD_NAMES) if draw.random() < 0.08 else name for name in names]


def deep(folder: Path) -> bool:
    """Whether the input in this folder has folders in it that are too deep for Python to remove."""
    return (folder / "images" / _DEEP).is_dir()


def _nest(path: Path, depth: int) -> None:
    """Folders inside each other, deeper than a path may be long."""
    path.mkdir()
    here = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


_TYPES = (
    "|u1",
    "<f4",
    ">f4",
    "<f8",
    "<f2",
    ">i8",
    "<i8",
    "<i4",
    "|b1",
    "<c8",
    "|S3",
    "<U5",
    "|O",
    "<M8[s]",
    "|V8",
    "<f16",
    "<u2",
    "<u8",
)


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _raw_npy(header: str, content: bytes, version: int = 1) -> bytes:
    text = header.encode("latin-1", "replace") + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little", signed=False)
    return b"\x93NUMPY" + bytes((version, 0)) + size + text + content


def _odd_header(draw: Random) -> str:
    shape = draw.choice(
        (
            "(8, 8, 8)",
            "(8,)",
            "(8, 8)",
            "()",
            "(-1, 8, 8)",
            f"({2**40},)",
            f"({10**23},)",
            "(1, 2, 3, 4)",
            "8",
            "(2.5,)",
            "(0, 8, 8)",
        )
    )
    whole = f"{{'descr': {draw.choice(_TYPES)!r}, 'fortran_order': {draw.choice(('False', 'True', '3'))}, 'shape': {shape}, }}"
    odd = (
        "{[]: 1}",
        "{",
        "",
        "-" * 3000 + "1",
        "(" * 900,
        "open('canary','w')",
        "{'descr': [('a', '<f4')]}",
        "\x1b[31m",
        "[" * 9000,
    )
    return draw.choice((whole, whole, whole, draw.choice(odd)))


@cache
def _members() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, _SIDE, _SIDE), dtype=np.uint8)
    names = np.array(["a", "b", "c", "d", "e"])
    return {"images.npy": _npy(pixels), "labels.npy": _npy(np.arange(20) % 5), "class_names.npy": _npy(names)}


def _odd_array(draw: Random, name: str) -> bytes:
    """Arrays that numpy writes and nobody wants, or does."""
    kind = draw.choice([entry for entry in _TYPES if entry != "|O"])
    if name == "labels.npy":
        labels = np.arange(20) % 5
        labels[3] = draw.choice((-1, 5, 10**6, 10**9, 2**40, 2**62))
        return _npy(
            draw.choice((labels, labels.astype(kind), labels.reshape(4, 5), labels[:7], np.zeros(0), np.int64(3)))
        )
    if name == "class_names.npy":
        texts = np.array(
            [draw.choice(ODD_TEXTS).replace("\ud800", "?")[:50] for _ in range(draw.choice((0, 1, 5, 9)))], str
        )
        raw = _raw_npy("{'descr': '<U1', 'fortran_order': False, 'shape': (5,), }", (0xD800).to_bytes(4, "little") * 5)
        return draw.choice(
            (_npy(texts), _npy(np.char.encode(texts, "utf-8")), raw, _npy(np.arange(5)), _npy(np.array("x")))
        )
    shape = draw.choice(
        ((20, 8, 8), (20, 8, 8, 3), (20, 3, 8, 8), (20, 0, 8), (20, 8), (20, 8, 8, 7), (20, 1, 1, 1), (20, 2000, 2))
    )
    return _npy(np.zeros(shape, kind))


def npz(draw: Random, where: Path) -> Images:
    """An ``.npz`` file whose members, headers or bytes are altered."""
    path = where / "images.npz"
    members = dict(_members())
    how = draw.random()
    name = draw.choice(tuple(members))
    if how < 0.04:
        special(draw, path)
        return _wished(draw, path)
    if how < 0.3:
        members[name] = _odd_array(draw, name)
    elif how < 0.5:
        members[name] = _raw_npy(
            _odd_header(draw), bytes(draw.choice((0, 64, 512, 4096))), draw.choice((1, 1, 2, 3, 9))
        )
    elif how < 0.65:
        members[name] = altered(draw, members[name], members["images.npy"])
    elif how < 0.7:
        members[draw.choice(("images", "labels.npy.npy", "class_names", "x.npy"))] = draw.choice(
            (b"raw", members.pop(name))
        )
    elif how < 0.71:
        path.write_bytes(_deflated_bomb(draw.choice((20, 3000))))
        return _wished(draw, path)
    content = archive(draw, members) if draw.random() < 0.4 else _zipped(members)
    path.write_bytes(altered(draw, content, picture("PNG")) if how >= 0.85 else content)
    return _wished(draw, path)


def _zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


@cache
def _deflated_bomb(megabytes: int) -> bytes:
    """Black images that deflate a thousandfold."""
    rows = megabytes << 14
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, {_SIDE}, {_SIDE}), }}"
    return zeros_deflated(
        "images.npy", _raw_npy(header, b""), megabytes, {"labels.npy": _npy(np.zeros(rows, np.uint8))}
    )

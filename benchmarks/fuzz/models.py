"""Model and trigger files: safetensors, both forms of ``torch.save``, and pickles written by hand to do harm."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torchvision import models as torchvision_models

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier, save_classifier
from backdoor_audit.model.networks import NETWORKS, build_network
from backdoor_audit.triggers.trigger import Trigger, load_trigger
from benchmarks.fuzz.alter import CANARY_MODULE, ODD_TEXTS, altered, altered_json, special
from benchmarks.fuzz.pickles import altered_pickle, as_long, as_tensor, as_text, hostile

SHAPE = (1, 8, 8)
NETWORK = "small_vgg"


@cache
def _classifier() -> Classifier:
    torch.manual_seed(0)
    module = build_network(NETWORK, num_classes=5, in_channels=1, width=2)
    return Classifier.wrap(module, image_shape=SHAPE, mean=(0.5,), std=(0.25,), architecture=NETWORK)


@cache
def valid_safetensors() -> bytes:
    """A model as the product saves it."""
    with tempfile.TemporaryDirectory() as folder:
        save_classifier(_classifier(), Path(folder, "m"))
        return in_order(Path(folder, "m").read_bytes())


def in_order(content: bytes) -> bytes:
    """A safetensors file whose header's notes are in order: the library writes them in a random one."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@cache
def valid_torch(zipped: bool) -> bytes:
    """The same as a state dict; in the older form all tensors share a storage, as its names are addresses."""
    state = {name: tensor.contiguous() for name, tensor in _classifier().module.state_dict().items()}
    if not zipped:
        state = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        sizes = [tensor.numel() for tensor in state.values()]
        parts = torch.cat([tensor.flatten() for tensor in state.values()]).split(sizes)
        state = {name: part.view_as(state[name]) for name, part in zip(state, parts, strict=True)}
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, buffer, _use_new_zipfile_serialization=zipped)
    address = str(next(iter(state.values())).untyped_storage()._cdata)
    return buffer.getvalue() if zipped else buffer.getvalue().replace(as_text(address), as_text("0"))


def read_model(path: Path) -> Iterable[str]:
    """Load it as the gate does, under the name of its architecture where the file cannot tell."""
    arch = NETWORK if path.suffix == ".pt" else None
    classifier = load_classifier(path, image_shape=SHAPE, arch=arch)
    return [classifier.architecture]


def safetensors(draw: Random, folder: Path) -> Path:
    """A safetensors model whose header, tensors or bytes are altered."""
    path = folder / "m.safetensors"
    how = draw.random()
    if how < 0.04:
        special(draw, path)
    elif how < 0.35:
        path.write_bytes(altered(draw, valid_safetensors(), valid_torch(True)))
    else:
        path.write_bytes(_reheaded(draw, valid_safetensors(), _MODEL_NOTES))
        if how > 0.98:
            with path.open("ab") as file:
                file.truncate(20 << 30)
    return path


_MODEL_NOTES: dict[str, Sequence[str]] = {
    "architecture": (
        *NETWORKS,
        *(f"torchvision:{name}" for name in torchvision_models.list_models(module=torchvision_models)),
        *(
            f"{CANARY_MODULE}:make",
            "os:system",
            "timm:resnet18",
            "timm:hf-hub:x/y",
            "torchvision:fasterrcnn_resnet50_fpn",
        ),
    ),
    "image_shape": ("1x8x8", "1x9x9", "3x8x8", "0x0x0", "-1x8x8", "1x8", "64x4096x4096", "1x8x8x8", "9" * 99),
    "mean": ("0.5", "0.5,0.5", "nan", "1e400", "", "x", ",", "0," * 99),
    "std": ("0.25", "0", "-1", "inf", "1e-320", "", "0.2,0.2"),
}


def _reheaded(draw: Random, content: bytes, notes: dict[str, Sequence[str]]) -> bytes:
    """A safetensors file with another header: other notes, other names and shapes, or any JSON."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = draw.randrange(6)
    if how <= 1:
        name = draw.choice(tuple(notes))
        header["__metadata__"][name] = draw.choice((*notes[name], *ODD_TEXTS))
    elif how == 2:
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        entry = draw.choice(entries)
        other = draw.choice(
            ("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "I8", "U16", "U64")
        )
        entry["dtype"] = draw.choice((entry["dtype"], other))
        entry["shape"] = draw.choice(
            ([], [0], [1], [2**40, 2**40], [2**62], [-1], [*entry["shape"], 1], entry["shape"][::-1])
        )
    elif how == 3:
        prefix = draw.choice(("module.", "model.", "_orig_mod.", "\x1b[31m", "::error::")) * draw.choice(
            (1, 3, 20, 2000)
        )
        header = {name if name == "__metadata__" else prefix + name: entry for name, entry in header.items()}
    elif how == 4:
        data = _odd_numbers(draw, data)
    text = json.dumps(header).encode() if how < 5 else altered_json(draw, header).encode("utf-8", "surrogatepass")
    length = len(text) if draw.random() < 0.95 else draw.choice((0, 2**63, len(text) - 1, len(text) + 9))
    return length.to_bytes(8, "little") + text + data


def _odd_numbers(draw: Random, data: bytes) -> bytes:
    """NaN, infinities or huge values in place of some."""
    value = draw.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\1\0\0\0"))
    at = draw.randrange(len(data) // 4) * 4
    return data[:at] + value + data[at + 4 :]


def torch_zip(draw: Random, folder: Path) -> Path:
    """A zip of ``torch.save`` whose members, central directory or pickle are altered."""
    path = folder / "m.pt"
    how = draw.random()
    if how < 0.02:
        special(draw, path)
    elif how < 0.35:
        path.write_bytes(altered(draw, valid_torch(True), valid_safetensors()))
    elif how < 0.6:
        members = _members()
        name = draw.choice(tuple(members))
        members[name] = altered(draw, members[name], members["archive/data.pkl"])
        path.write_bytes(archive(draw, members))
    elif how < 0.99:
        members = _members()
        members["archive/data.pkl"] = altered_pickle(draw, members["archive/data.pkl"])
        path.write_bytes(archive(draw, members))
    else:
        members = _members()
        del members["archive/data/0"]
        bombs = (_bomb(64), _bomb(3000), zeros_deflated("archive/data/0", b"", 3000, members))
        path.write_bytes(draw.choice(bombs))
    return path


def _members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(valid_torch(True))) as file:
        return {entry.filename: file.read(entry) for entry in file.infolist()}


def archive(draw: Random, members: dict[str, bytes]) -> bytes:
    """These members as a zip: stored or deflated, some renamed, dropped or doubled, with lies about flags and sizes."""
    buffer = io.BytesIO()
    method = draw.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            how = draw.randrange(40)
            called = draw.choice((name[:-1], "/" + name, "../" + name, name.upper(), "x\x1b[31m")) if how == 0 else name
            for _ in range({1: 0, 2: 2}.get(how, 1)):
                file.writestr(zipfile.ZipInfo(called), content, method)
    whole = bytearray(buffer.getvalue())
    if draw.random() < 0.3:
        offset, values = draw.choice(
            (
                (8, (b"\1\0", b"\x40\0", b"\0\x08")),  # flags: encrypted
                (10, (b"\x63\0", b"\1\0")),  # method
                (6, (b"\x63\0",)),  # version
                (20, (b"\xff\xff\xff\x7f", b"\0\0\0\0")),  # sizes
                (24, (b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff")),
                (42, (b"\xff\xff\xff\x7f",)),  # where the member begins
            )
        )
        value, at = draw.choice(values), whole.find(b"PK\1\2")
        while at >= 0:
            whole[at + offset : at + offset + len(value)] = value
            at = whole.find(b"PK\1\2", at + 4) if draw.random() < 0.7 else -1
    return bytes(whole)


@cache
def _bomb(megabytes: int) -> bytes:
    """A state dict with one storage of zeros, deflated a thousandfold."""
    count = megabytes << 18
    body = b"\x80\2}" + as_text("w") + as_tensor(b"K\0", as_long(count) + b"\x85", b"K\1\x85", count=count) + b"s."
    return zeros_deflated("archive/data/0", b"", megabytes, {"archive/data.pkl": body, "archive/version": b"3\n"})


def zeros_deflated(name: str, head: bytes, megabytes: int, members: dict[str, bytes]) -> bytes:
    """A zip of ``members`` and, first, one that begins with ``head`` and goes on with zeros; its checksum is wrong."""
    pack, block = zlib.compressobj(6, zlib.DEFLATED, -15), bytes(1 << 20)
    deflated = pack.compress(head) + pack.flush(zlib.Z_FULL_FLUSH)
    deflated += (pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)) * megabytes + pack.flush()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for member, content in {name: deflated, **members}.items():
            file.writestr(zipfile.ZipInfo(member), content)
    whole = bytearray(buffer.getvalue())
    size = len(head) + (megabytes << 20)
    for mark, at_method in (
        (b"PK\3\4", 8),
        (b"PK\1\2", 10),
    ):  # say that the first member is deflated, and what it holds
        at = whole.find(mark) + at_method
        whole[at : at + 2] = b"\x08\0"
        whole[at + 14 : at + 18] = size.to_bytes(4, "little")
    return bytes(whole)


def torch_legacy(draw: Random, folder: Path) -> Path:
    """The older form of ``torch.save``: pickles behind each other, then the storages."""
    path = folder / "m.pt"
    content = valid_torch(False)
    if draw.random() < 0.5:
        path.write_bytes(altered(draw, content, valid_torch(True)))
    else:
        begin, end = _third_pickle(content)
        path.write_bytes(content[:begin] + altered_pickle(draw, content[begin:end]) + content[end:])
    return path


@cache
def _third_pickle(content: bytes) -> tuple[int, int]:
    """Where the object's own pickle begins and ends: behind a magic number, a version and the system's sizes."""
    stream, ends = io.BytesIO(content), []
    for _ in range(4):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    return ends[2], ends[3]


def hostile_pickle(draw: Random, folder: Path) -> Path:
    """A pickle written by hand, in a zip, in the older form, or by itself."""
    path = folder / "m.pt"
    content = b"\x80\2" + hostile(draw) + b"."
    how = draw.randrange(5)
    if how <= 2:
        members = {"archive/data.pkl": content, "archive/version": b"3\n", "archive/data/0": bytes(64)}
        path.write_bytes(archive(draw, members))
    elif how == 3:
        head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + content + pickle.dumps(["0"], 2) + (16).to_bytes(8, "little") + bytes(64))
    else:
        path.write_bytes(content)
    return path


@cache
def valid_trigger() -> bytes:
    """A patch as a trigger file."""
    mask = torch.zeros(1, 8, 8)
    mask[:, :3, :3] = 1
    with tempfile.TemporaryDirectory() as folder:
        Trigger(mask, torch.full(SHAPE, 0.5), 2).save(Path(folder, "t"))
        return in_order(Path(folder, "t").read_bytes())


@cache
def _valid_addition() -> bytes:
    return in_order(save_tensors({"change": torch.full(SHAPE, 0.1)}, metadata={"target_class": "1"}))


def trigger(draw: Random, folder: Path) -> Path:
    """A trigger file, altered."""
    path = folder / "t.safetensors"
    content, other = draw.sample((valid_trigger(), _valid_addition()), 2)
    how = draw.random()
    if how < 0.05:
        special(draw, path)
    elif how < 0.5:
        path.write_bytes(altered(draw, content, other))
    else:
        path.write_bytes(_reheaded(draw, content, {"target_class": ("-1", "1.5", "0x1", "9" * 9, "²", "٣")}))
    return path


def read_trigger(path: Path) -> Iterable[str]:
    """Load it and stamp with it."""
    found: Any = load_trigger(path)
    if found.tensors().keys() & {"pattern", "change"} and all(
        tensor.numel() < 2**20 for tensor in found.tensors().values()
    ):
        shape = tuple(found.tensors()["pattern" if "pattern" in found.tensors() else "change"].shape)
        found.stamp(torch.zeros(2, *shape))
    return [str(found.target_class)]

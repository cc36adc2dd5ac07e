"""The formats that are read, and what is said of others."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from backdoor_audit.model.loading import (
    folder_part,
    folders,
    hugging_face,
    onnx_file,
    safetensors_file,
    torch_save,
    zipped,
)
from backdoor_audit.model.loading.format import Asked, Format
from backdoor_audit.printable import printable

FORMATS: tuple[Format, ...] = (
    hugging_face.FORMAT,
    folder_part.FORMAT,
    safetensors_file.FORMAT,
    zipped.EXPORTED,
    zipped.FORMAT,
    torch_save.FORMAT,
    onnx_file.FORMAT,
)
"""The first that recognises a file reads it."""

SUFFIXES = tuple(suffix for format in FORMATS for suffix in format.suffixes)
"""Of model files, in small letters, where a folder of them is given."""

_USUAL = ("model.safetensors", "model.pt", "model.pth", "model.ckpt", "model.onnx", "pytorch_model.bin")
_BESIDE = re.compile(
    r"(?:optim(?:izer)?|(?:lr_)?sched(?:uler)?|sampler|scaler|rng_state|random_states?|training_args|trainer_state)(?![a-z])",
    re.IGNORECASE,
)
"""Begins the names of files that trainers write beside the weights, with the same endings."""

_CONVERT = "convert it to safetensors, safetensors.torch.save_file(model.state_dict(), 'm.safetensors')"
_OTHERS = (
    (0, b"version https://", "a Git LFS pointer instead of the model; run git lfs pull"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it; convert the network to PyTorch or ONNX"),
    (4, b"TFL3", "a TensorFlow Lite file; convert the network to PyTorch or ONNX"),
    (0, b"GGUF", "a GGUF file, which is no image classifier of PyTorch; give the weights that it was made from"),
    (0, b"\x93NUMPY", "an array of numpy; save the weights by name, as safetensors"),
    *(
        (at, mark, f"packed with {packer}; unpack it first")
        for at, mark, packer in (
            (0, b"\x1f\x8b", "gzip"),
            (0, b"BZh", "bzip2"),
            (0, b"\xfd7zXZ", "xz"),
            (0, b"\x28\xb5\x2f\xfd", "zstd"),
            (0, b"7z\xbc\xaf", "7z"),
            (0, b"Rar!", "rar"),
            (257, b"ustar", "tar"),
        )
    ),
)
_CONVERTED = "convert the network to PyTorch or ONNX"
_BY_NAME = {
    **dict.fromkeys((".pb", ".h5", ".keras"), "TensorFlow"),
    **dict.fromkeys((".pdparams", ".pdiparams", ".pdmodel"), "Paddle"),
    **dict.fromkeys((".engine", ".plan", ".trt"), "TensorRT"),
    **dict.fromkeys((".mlmodel", ".mlpackage"), "Core ML"),
    ".msgpack": "Flax",
    ".caffemodel": "Caffe",
    ".params": "MXNet",
    ".pte": "ExecuTorch",
}
"""Whose files have these endings, which begin in no way of their own."""

_TEXT = re.compile(rb"[\t\n\f\r -~]+")
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<")


def unknown(asked: Asked, formats: Sequence[Format] = FORMATS) -> str:
    """What is said of a file or folder that is none of ``formats``."""
    if os.path.isdir(asked.path):
        return _no_model(asked.path)
    told = next((said for at, mark, said in _OTHERS if asked.start[at:].startswith(mark)), "")
    whose = _BY_NAME.get(asked.path.suffix.lower())
    if told or whose:
        return told or f"a file of {whose}; {_CONVERTED}"
    if _MARKUP.match(asked.start):
        return "a web page instead of the model, or XML; download the file itself"
    if _TEXT.fullmatch(asked.start):
        return f"a text instead of the model (begins with {printable(asked.start[:40].decode())!r}); give the model file itself"
    if asked.path.suffix == safetensors_file.SUFFIX:
        return f"not a readable safetensors file (begins with {asked.start[:8]!r}); check that it is complete"
    *names, last = (format.name for format in formats if format.suffixes and not format.refused)
    return f"neither {', '.join(names)} nor {last} (begins with {asked.start[:8]!r}); {_CONVERT}"


def _no_model(folder: Path) -> str:
    accepted = "accepted: a model file, or a folder with config.json and model.safetensors or pytorch_model.bin"
    inside = sorted(folder.iterdir(), key=lambda file: (file.name not in _USUAL, file.name))
    if folders.is_distributed(folder):
        return folders.merged(folder)
    models = [file for file in inside if file.suffix.lower() in SUFFIXES and not _BESIDE.match(file.name)]
    if models:
        return f"not a file but a folder; give the model file in it, {folders.shown(models[0])} ({accepted})"
    found = folders.checkpoints_in(folder)
    if found:
        names = " or ".join(folders.shown(checkpoint) for checkpoint in found[:3])
        return f"not a file but a folder with {len(found)} checkpoints in it; pass --model={names} ({accepted})"
    other = next((file for file in inside if file.suffix.lower() in _BY_NAME), None)
    if other is not None:
        whose = _BY_NAME[other.suffix.lower()]
        return f"not a file but a folder with {printable(other.name)[:60]} of {whose}; {_CONVERTED} ({accepted})"
    parts = next((part for part in inside if part.is_dir() and folders.is_distributed(part)), None)
    return folders.merged(parts) if parts else f"not a file but a folder, without a model in it; {accepted}"

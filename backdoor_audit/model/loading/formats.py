"""The formats that are read, and what is said of others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from backdoor_audit.model.loading import hugging_face, onnx_file, safetensors_file, torch_save, zipped
from backdoor_audit.model.loading.format import Asked, Format

FORMATS: tuple[Format, ...] = (
    hugging_face.FORMAT,
    safetensors_file.FORMAT,
    zipped.EXPORTED,
    zipped.FORMAT,
    torch_save.FORMAT,
    onnx_file.FORMAT,
)
"""The first that recognises a file reads it."""

SUFFIXES = tuple(suffix for format in FORMATS for suffix in format.suffixes)
"""Of model files, in small letters, where a folder of them is given."""

_CONVERT = "convert it to safetensors, safetensors.torch.save_file(model.state_dict(), 'm.safetensors')"
_OTHERS = (
    (0, b"version https://", "a Git LFS pointer instead of the model; run git lfs pull"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it; convert the network to PyTorch or ONNX"),
    (4, b"TFL3", "a TensorFlow Lite file; convert the network to PyTorch or ONNX"),
    (0, b"GGUF", "a GGUF file, which is no image classifier of PyTorch; give the weights that it was made from"),
    (0, b"\x93NUMPY", "an array of numpy; save the weights by name, as safetensors"),
    (0, b"\x1f\x8b", "packed with gzip; unpack it first (gunzip)"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (0, b"<!DOCTYPE", "a web page instead of the model; download the file itself"),
    (0, b"<!doctype", "a web page instead of the model; download the file itself"),
    (0, b"<html", "a web page instead of the model; download the file itself"),
)


def unknown(asked: Asked, formats: Sequence[Format] = FORMATS) -> str:
    """What is said of a file or folder that is none of ``formats``."""
    if os.path.isdir(asked.path):
        return _no_model(asked.path)
    for at, mark, said in _OTHERS:
        if asked.start[at:].startswith(mark):
            return said
    *names, last = (format.name for format in formats if format.suffixes and not format.refused)
    return f"neither {', '.join(names)} nor {last} (begins with {asked.start[:8]!r}); {_CONVERT}"


def _no_model(folder: Path) -> str:
    inside = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    accepted = "accepted: a model file, or a folder with config.json and model.safetensors or pytorch_model.bin"
    sharded = any(name.endswith(".index.json") for name in map(str, folder.glob("*.index.json")))
    if sharded:
        return "a folder with weights in several files; save them as one, save_pretrained(..., max_shard_size='100GB')"
    if inside:
        return f"not a file but a folder; give the model file in it, {folder.name}/{inside[0][:60]} ({accepted})"
    return f"not a file but a folder, without a model in it; {accepted}"

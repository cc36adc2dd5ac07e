"""Zip archives that torch.save did not write: what they are, and the way out."""

from __future__ import annotations

from typing import NoReturn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.format import Asked, Format

_MODELS = (".pt", ".pth", ".safetensors", ".onnx", ".ckpt", ".bin", ".pkl")


def _recognises(asked: Asked) -> bool:
    names = asked.members
    return bool(names) and not any(name == "data.pkl" or name.startswith("data/") for name in names)


def _refuse(asked: Asked) -> NoReturn:
    names = sorted(asked.members)
    inside = [name for name in names if name.endswith(_MODELS)]
    if all(name.endswith(".npy") for name in names):
        raise ModelFormatError("an .npz of numpy arrays; save them as tensors by name, safetensors.numpy.save_file")
    if "model.weights.h5" in names:
        raise ModelFormatError("a Keras archive; convert the network to PyTorch or ONNX")
    if inside:
        raise ModelFormatError(f"a zip archive with {inside[0][-60:]} in it; unpack it and give that file")
    raise ModelFormatError(f"a zip archive, but no model (holds {', '.join(name[-40:] for name in names[:3])})")


FORMAT = Format("zip", _recognises, _refuse, refused=True)

"""Zip archives that torch.save did not write, those of ``torch.export`` (.pt2) among them: what they are, and the way out."""

from __future__ import annotations

from typing import NoReturn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.format import Asked, Format

_MODELS = (".pt", ".pth", ".safetensors", ".onnx", ".ckpt", ".bin", ".pkl")
_EXPORTED_HAVE = frozenset(
    {
        "data/weights/model_weights_config.json",
        "data/weights/model.pt",
        "serialized_exported_program.json",
        "models/model.json",
    }
)


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


def _is_exported(asked: Asked) -> bool:
    return not _EXPORTED_HAVE.isdisjoint(asked.members)


def _refuse_exported(asked: Asked) -> NoReturn:
    raise ModelFormatError(
        "a torch.export archive, which is a program: it is not run here, and its weights alone would not audit it; re-save the "
        'weights where its origin is trusted, torch.save(torch.export.load(f).state_dict, "weights.pt"), audit and deploy those '
        "with --arch=NAME"
    )


EXPORTED = Format("torch.export", _is_exported, _refuse_exported, (".pt2",), refused=True)
"""A graph, which torch would run code to read."""

"""Models in safetensors files: tensors and a header of short strings, nothing that could be executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from backdoor_audit.classifier import Classifier
from backdoor_audit.errors import ModelFormatError


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file.

    Raises `ModelFormatError`, without the file's name, if it is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFormatError(f"not a readable safetensors file ({reason}); check that it is complete") from None


def save_classifier(
    classifier: Classifier, path: Path, *, half: bool = False, notes: Mapping[str, str] | None = None
) -> None:
    """Write a classifier so that `pytest --model=PATH` needs no other option.

    The header names the architecture, the shape of its images and the normalisation. ``half`` stores 16-bit floats.
    ``notes`` are further header entries, for people and other programs; loading does not read them.
    Raises `ModelFormatError` for a network with forward hooks, such as a pruned copy: weights alone would undo the repair.
    """
    hooked = [
        name for name, module in classifier.module.named_modules() if module._forward_hooks or module._forward_pre_hooks
    ]
    if hooked:
        raise ModelFormatError(
            f"{path}: layer {hooked[0]!r} has a forward hook, which a file of weights cannot hold; a pruned copy would come "
            "back unpruned, so save the unpruned classifier and prune after loading"
        )
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in classifier.module.state_dict().items()
        if not re.fullmatch(r"(.*\.)?num_batches_tracked", name)  # counters that a frozen network never reads
    }
    header = {
        **(notes or {}),
        "architecture": classifier.architecture,
        "image_shape": "x".join(map(str, classifier.image_shape)),
        "mean": ",".join(map(str, classifier.mean)),
        "std": ",".join(map(str, classifier.std)),
    }
    save_file(tensors, path, metadata=header)

"""Models in safetensors files: tensors and a header of short strings, nothing that could be executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backdoor_audit import tensor_file
from backdoor_audit.classifier import Classifier
from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError
from backdoor_audit.loading.foreign import contained


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file.

    Raises `ModelFormatError`, without the file's name, if it is not one, or takes more memory than the bound.
    """
    try:
        return tensor_file.read(path)
    except UnreadableError as error:
        raise ModelFormatError(f"not a readable safetensors file ({error}); check that it is complete") from None


def save_classifier(
    classifier: Classifier, path: Path, *, half: bool = False, notes: Mapping[str, str] | None = None
) -> None:
    """Write a classifier, whole or not at all, so that `pytest --model=PATH` needs no other option.

    The header names the architecture, the shape of its images and the normalisation. ``half`` stores 16-bit floats.
    ``notes`` are further header entries, for people and other programs; loading does not read them.
    Raises `ModelFormatError` for a network with forward hooks, such as a pruned copy: weights alone would undo the repair;
    `OSError` if the file cannot be written.
    """
    with contained(f"{path}: {classifier.architecture} does not give its tensors"):
        modules, state = dict(classifier.module.named_modules()), classifier.module.state_dict()
        hooked = [name for name, module in modules.items() if module._forward_hooks or module._forward_pre_hooks]
    if hooked:
        raise ModelFormatError(
            f"{path}: layer {hooked[0]!r} has a forward hook, which a file of weights cannot hold; a pruned copy would come "
            "back unpruned, so save the unpruned classifier and prune after loading"
        )
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in state.items()
        if not re.fullmatch(r"(.*\.)?num_batches_tracked", name)  # counters that a frozen network never reads
    }
    header = {
        **(notes or {}),
        "architecture": classifier.architecture,
        "image_shape": "x".join(map(str, classifier.image_shape)),
        "mean": ",".join(map(str, classifier.mean)),
        "std": ",".join(map(str, classifier.std)),
    }
    tensor_file.write(tensors, path, header)

"""Models in safetensors files: tensors and a header of short strings, nothing that could be executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backdoor_audit import tensor_file
from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading.architecture import architecture_of
from backdoor_audit.model.loading.class_names import header_names
from backdoor_audit.model.loading.containers import Candidate
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.format import Asked, Format, Network
from backdoor_audit.model.loading.hints import Hints, shown_short
from backdoor_audit.model.loading.placing import Source, place
from backdoor_audit.model.loading.tensors import as_float32
from backdoor_audit.printable import printable

SUFFIX = ".safetensors"
_LARGEST_HEADER = 100_000_000  # safetensors' own limit, bytes


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file.

    Raises `ModelFormatError`, without the file's name, if it is not one, or takes more memory than the bound.
    """
    try:
        return tensor_file.read(path)
    except UnreadableError as error:
        raise ModelFormatError(f"not a readable safetensors file ({error}); check that it is complete") from None


def _recognises(asked: Asked) -> bool:
    length = int.from_bytes(asked.start[:8], "little")
    begins = asked.start[8:9] == b"{"
    return begins and (length <= min(asked.size - 8, _LARGEST_HEADER) or asked.path.suffix == SUFFIX)


def _network(asked: Asked) -> Network:
    tensors, header = read(asked.path)
    said = header.get("architecture", "")
    architecture = architecture_of(asked.arch, header=said, num_classes=asked.num_classes, file=asked.path)
    source = Source((Candidate((), as_float32(tensors)),), dict, dict)
    built, notes = place(source, architecture)
    if asked.arch and said and said != asked.arch:
        notes += (f"--arch={asked.arch} instead of {printable(said[:60])} in the header",)
    hints = Hints(class_names=shown_short(header_names(header))).or_else(built)
    return Network(built.module, architecture.name, notes + built.notes, header, hints)


FORMAT = Format("safetensors", _recognises, _network, (SUFFIX,))


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

"""Folders as Hugging Face keeps them: config.json, weights, preprocessor_config.json; of transformers or of timm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from backdoor_audit import bounds
from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError, refuse_special
from backdoor_audit.model.loading import checkpoint, safetensors_file
from backdoor_audit.model.loading.architecture import TRANSFORMERS, architecture_of
from backdoor_audit.model.loading.containers import Candidate, candidates
from backdoor_audit.model.loading.folders import (
    ADAPTER,
    CONFIG,
    INDEX,
    PREPROCESSORS,
    WHOLE,
    all_weights_in,
    json_of,
    parts_by_file,
    weights_in,
)
from backdoor_audit.model.loading.format import Asked, Format, Network
from backdoor_audit.model.loading.placing import Source, place
from backdoor_audit.model.loading.preprocessing import hints_of_timm, hints_of_transformers, takes_blue_first
from backdoor_audit.model.loading.refusals import Deadline, needs_code, refuse_above, refuse_quantised
from backdoor_audit.model.loading.tensors import as_float32
from backdoor_audit.model.loading.timm_network import configured_name, is_named, refuse_other_pool
from backdoor_audit.model.loading.transformers_network import transformers_network
from backdoor_audit.printable import printable

_POINTER = b"version https://git-lfs"


def _recognises(asked: Asked) -> bool:
    weights = weights_in(asked.path) if os.path.isdir(asked.path) else None
    return weights is not None and ((asked.path / CONFIG).is_file() or weights.name.endswith(INDEX))


def _read(asked: Asked) -> Network:
    folder = asked.path
    weights = weights_in(folder)
    if weights is None:
        raise ModelFormatError(f"neither {' nor '.join(WHOLE)} is in the folder any more")
    config = json_of(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    preprocessor = next((json_of(folder / name) for name in PREPROCESSORS if (folder / name).is_file()), {})
    tensors = _weights(weights)
    _refuse_others(folder, weights, tensors)
    if "model_type" in config and not asked.arch:
        hints = hints_of_transformers(config, preprocessor)
        found, notes = transformers_network(config, as_float32(tensors), flipped=takes_blue_first(preprocessor))
        return Network(found, f"{TRANSFORMERS}:{str(config['model_type'])[:60]}", notes, hints=hints)
    hints = hints_of_timm(config) if "architecture" in config else hints_of_transformers(config, preprocessor)
    arch = asked.arch or _timm_or_torchvision(config)
    said = config.get("architecture") or config.get("model_type")
    of_timm = is_named(arch, said)
    if asked.arch and of_timm:
        arch = configured_name(config, arch.removeprefix("timm:"))
    architecture = architecture_of(arch, num_classes=asked.num_classes)
    built, notes = place(Source((Candidate((), as_float32(tensors)),), dict, dict), architecture)
    if of_timm:
        refuse_other_pool(config, arch, built.module)
    elif takes_blue_first(preprocessor):
        notes += (
            "preprocessor_config.json gives blue, green, red: the network of --arch has to flip the channels itself",
        )
    if asked.arch and not of_timm and isinstance(said, str):
        notes += (f"--arch={asked.arch} instead of {printable(said[:60])} in config.json",)
    return Network(built.module, architecture.name, notes + built.notes, hints=hints.or_else(built))


def _timm_or_torchvision(config: Mapping[str, Any]) -> str:
    name = config.get("architecture")
    if not isinstance(name, str):
        raise ModelFormatError(
            "a folder without a config.json that names its network (model_type or architecture); pass --arch=NAME"
        )
    if "," in name:
        raise ModelFormatError(
            f"config.json: architecture {name[:60]!r} adds sizes, which only the command line may: "
            "--arch=timm:NAME,img_size=N"
        )
    named = configured_name(config, name)
    try:
        import timm  # noqa: F401, PLC0415 - an extra
    except ImportError:
        from torchvision import models  # noqa: PLC0415 - a second of imports that most runs do not need

        average = (
            named in (f"timm:{name}", f"timm:{name},global_pool=avg") and config.get("global_pool", "avg") == "avg"
        )
        if average and name in models.list_models(module=models):
            return f"torchvision:{name}"
    return named


def _weights(file: Path) -> dict[str, Tensor]:
    return _of_parts(file) if file.name.endswith(INDEX) else _tensors(file)


def _refuse_others(folder: Path, weights: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ModelFormatError` if the folder is another network to some of those that load it: which of them is shipped?"""
    if (folder / ADAPTER).exists():
        raise ModelFormatError(
            f"{ADAPTER} beside {weights.name}: transformers loads the network that it names, with an adapter; merge them, "
            "model.merge_and_unload().save_pretrained(...), or remove it"
        )
    used = as_float32(tensors)
    for other in all_weights_in(folder):
        if other == weights or _is_pointer(other):
            continue
        try:
            found = as_float32(_weights(other))
        except ModelFormatError as error:
            raise ModelFormatError(
                f"{other.name} beside {weights.name}: {error}; remove it if it is not shipped"
            ) from None
        names = {name for held in (used, found) for name, tensor in held.items() if tensor.is_floating_point()}
        apart = [
            name for name in sorted(names) if not (name in used and name in found and used[name].equal(found[name]))
        ]
        if apart:
            raise ModelFormatError(
                f"{weights.name} and {other.name} hold different weights ({len(apart)} of {len(names)} tensors, as "
                f"{apart[0][:80]}); remove the "
                "one that is not shipped"
            )


def _is_pointer(file: Path) -> bool:
    """Whether Git has left a note of a large file in its place."""
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def _of_parts(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names, within the bounds for one.

    Raises `ModelFormatError` if a file holds other tensors than the index says.
    """
    found: dict[str, Tensor] = {}
    deadline, allowed = Deadline(), bounds.current()
    for file, names in parts_by_file(index).items():
        deadline.check()
        held = 2 * 4 * sum(tensor.numel() for tensor in found.values())
        with bounds.allowing(replace(allowed, memory=max(allowed.memory - held, 0))):
            tensors = _tensors(file)
        if tensors.keys() != names:
            odd = sorted(tensors.keys() ^ names)[0]
            raise ModelFormatError(
                f"{file.name} and {index.name} contradict each other ({odd[:80]}); copy the folder again from its source"
            )
        found |= tensors
    return found


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        size = refuse_special(file)
    except UnreadableError as error:
        raise ModelFormatError(f"{file.name}: {error}") from None
    refuse_above(size, file.name)
    if file.suffix == ".safetensors":
        return safetensors_file.read(file)[0]
    with checkpoint.opened(file) as saved:
        found = candidates(saved.content, saved.deadline)
        if saved.strangers and not any(candidate.module for candidate in found):
            raise needs_code(next(iter(saved.strangers)))
        for candidate in found:
            refuse_quantised((*candidate.tensors, *candidate.others))
        if len(found) > 1:
            raise ModelFormatError(
                f"{file.name} holds {len(found)} sets of tensors, under {found[0].where} and under {found[1].where}; save "
                "the one to audit alone, or give the file itself with --arch"
            )
        stored = found[0].tensors
        checkpoint.described(stored)
        return saved.tensors(stored)


FORMAT = Format("Hugging Face", _recognises, _read)

"""Folders as Hugging Face keeps them: config.json, weights, preprocessor_config.json; of transformers or of timm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError, read_json, refuse_special
from backdoor_audit.model.loading import checkpoint, safetensors_file
from backdoor_audit.model.loading.architecture import TRANSFORMERS, architecture_of
from backdoor_audit.model.loading.containers import Candidate, candidates
from backdoor_audit.model.loading.format import Asked, Format, Network
from backdoor_audit.model.loading.placing import Source, place
from backdoor_audit.model.loading.preprocessing import hints_of_timm, hints_of_transformers
from backdoor_audit.model.loading.refusals import needs_code, refuse_above, refuse_quantised
from backdoor_audit.model.loading.tensors import as_float32
from backdoor_audit.model.loading.transformers_network import transformers_network

_CONFIG = "config.json"
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def files_of(folder: Path) -> tuple[Path, ...]:
    """The files that a network is made from, those of them that are there."""
    found = (folder / name for name in (_CONFIG, *_PREPROCESSORS, *_WEIGHTS))
    return tuple(file for file in found if file.is_file())


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def _recognises(asked: Asked) -> bool:
    return os.path.isdir(asked.path) and (asked.path / _CONFIG).is_file() and _weights_in(asked.path) is not None


def _read(asked: Asked) -> Network:
    folder = asked.path
    weights = _weights_in(folder)
    if weights is None:
        raise ModelFormatError(f"neither {' nor '.join(_WEIGHTS)} is in the folder any more")
    config = _json(folder / _CONFIG)
    preprocessor = next((_json(folder / name) for name in _PREPROCESSORS if (folder / name).is_file()), {})
    tensors = _tensors(weights)
    if "model_type" in config and not asked.arch:
        hints = hints_of_transformers(config, preprocessor)
        found, notes = transformers_network(
            config, as_float32(tensors), flipped=bool(preprocessor.get("do_flip_channel_order"))
        )
        return Network(found, f"{TRANSFORMERS}:{str(config['model_type'])[:60]}", notes, hints=hints)
    hints = hints_of_timm(config) if "architecture" in config else hints_of_transformers(config, preprocessor)
    arch = asked.arch or _timm_or_torchvision(config)
    architecture = architecture_of(arch, num_classes=asked.num_classes)
    built, notes = place(Source((Candidate((), as_float32(tensors)),), dict, dict), architecture)
    return Network(built.module, architecture.name, notes + built.notes, hints=hints.or_else(built))


def _timm_or_torchvision(config: Mapping[str, Any]) -> str:
    name = config.get("architecture")
    if not isinstance(name, str):
        raise ModelFormatError(
            "a folder whose config.json names no network (model_type or architecture); pass --arch=NAME"
        )
    if "," in name:
        raise ModelFormatError(
            f"config.json: architecture {name[:60]!r} adds sizes, which only the command line may: "
            "--arch=timm:NAME,img_size=N"
        )
    try:
        import timm  # noqa: F401, PLC0415 - an extra
    except ImportError:
        from torchvision import models  # noqa: PLC0415 - a second of imports that most runs do not need

        if name in models.list_models(module=models):
            return f"torchvision:{name}"
    return f"timm:{name}"


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


def _json(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except UnreadableError as error:
        raise ModelFormatError(f"{file.name}: {error}") from None
    if not isinstance(found, dict):
        raise ModelFormatError(f"{file.name} is no JSON object")
    return found


FORMAT = Format("Hugging Face", _recognises, _read)

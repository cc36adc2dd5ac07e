"""One file of a Hugging Face folder, given in place of the folder: what to pass instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.folders import (
    CONFIG,
    DISTRIBUTED,
    INDEX,
    PART,
    PREPROCESSORS,
    WEIGHTS,
    WHOLE,
    is_distributed,
    json_of,
    merged,
    shown,
    weights_in,
)
from backdoor_audit.model.loading.format import Asked, Format


def instead_of(file: Path) -> str:
    """What to pass in place of a file of weights whose folder says which network they are of, or nothing."""
    folder = file.parent
    if not _names_network(folder / CONFIG):
        return ""
    beside = f"{CONFIG} lies beside it: "
    if file.name in WHOLE:
        return f"{beside}pass --model={shown(folder)}"
    if weights_in(folder) is None and file.suffix in {".safetensors", ".bin", ".pt", ".pth"}:
        usual = WHOLE[0] if file.suffix == ".safetensors" else WHOLE[1]
        return f"{beside}call the file {usual} and pass --model={shown(folder)}"
    return ""


def _names_network(config: Path) -> bool:
    try:
        return not {"model_type", "architecture"}.isdisjoint(json_of(config)) if config.is_file() else False
    except ModelFormatError:
        return False


def _indices(file: Path) -> Iterator[Path]:
    """The index that a file is, or that lists it as one of several."""
    part = PART.fullmatch(file.name)
    if part is not None and int(part["count"]) > 1:
        yield file.with_name(f"{part['stem']}{part['suffix']}{INDEX}")
    if file.name in WEIGHTS and file.name.endswith(INDEX):
        yield file


def _is_distributed(file: Path) -> bool:
    return file.suffix == DISTRIBUTED or (file.name == ".metadata" and is_distributed(file.parent))


def _recognises(asked: Asked) -> bool:
    if _is_distributed(asked.path):
        return True
    said = asked.path.name in (CONFIG, *PREPROCESSORS) and weights_in(asked.path.parent) is not None
    return said or any(index.is_file() for index in _indices(asked.path))


def _refuse(asked: Asked) -> NoReturn:
    if _is_distributed(asked.path):
        raise ModelFormatError(merged(asked.path.parent))
    raise ModelFormatError(f"one file of a folder that holds a network; pass --model={shown(asked.path.parent)}")


FORMAT = Format("part", _recognises, _refuse, refused=True)
"""A file that says nothing without the others in its folder."""

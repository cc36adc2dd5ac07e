"""Which models a fleet has, and what each is called."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backdoor_audit.errors import OptionError
from backdoor_audit.model.loading import parts_of
from backdoor_audit.model.loading.formats import SUFFIXES

_NO_MODELS = re.compile(r"\..*|readme.*|licen[cs]e.*|.*\.(?:md|txt|json)", re.IGNORECASE | re.DOTALL)
_CONFIG = "config.json"
"""What makes a folder one model, as Hugging Face keeps it."""

MANIFEST, PAGE = "fleet.json", "fleet.html"
"""Files of a fleet, beside the folders of its models."""

_ODD = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 80  # characters of a name


@dataclass(frozen=True, slots=True)
class Model:
    """A model, a file or a folder as Hugging Face keeps it, and the name of its folder in the results."""

    name: str
    file: Path


def listed(given: Sequence[Path]) -> tuple[Model, ...]:
    """The models of a command line; a folder stands for the models in it. Raises `OptionError` for what is not there.

    Nothing in a folder is left out in silence: what is neither a model, nor weights beside one, nor a note is wrong usage.
    Weights beside a model that is given as well are no model of their own.
    """
    files: dict[str, Path] = {}
    for path in given:
        inside = _inside(path) if path.is_dir() and not _is_folder_model(path) else [path]
        files.update((os.path.abspath(file), file) for file in inside)
    beside = {os.path.abspath(part) for part in _beside(files.values())}
    files = {place: file for place, file in files.items() if place not in beside}
    missing = [str(file) for file in files.values() if not (file.is_file() or _is_folder_model(file))]
    if missing:
        more = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise OptionError(f"{missing[0]} is not a file{more}; give model files, or folders of them")
    names = [named(Path(place).name if file.is_dir() else file.stem) for place, file in files.items()]
    twice = Counter([MANIFEST, PAGE, *(name.lower() for name in names)])
    return tuple(
        Model(name if twice[name.lower()] == 1 else _told_apart(name, file), file)
        for name, file in zip(names, files.values(), strict=True)
    )


def _inside(folder: Path) -> list[Path]:
    """The models in a folder, sorted. Raises `OptionError` if there are none, and for a file that may be one but is not read."""
    found, strange, unknown = [], [], []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if _is_folder_model(entry):
                found.append(entry)
            elif _holds_models(entry):
                strange.append(f"{entry} is a folder with model files, give it as a MODEL of its own")
        elif entry.suffix.lower() in SUFFIXES:
            found.append(entry)
        elif not _NO_MODELS.fullmatch(entry.name):
            unknown.append(entry)
    beside = _beside(found)
    strange += [f"{entry} is no model file by its ending" for entry in unknown if entry not in beside]
    if strange:
        more = f" (and {len(strange) - 1} others)" if len(strange) > 1 else ""
        raise OptionError(
            f"{strange[0]}{more}; accepted in a folder of models: {', '.join(SUFFIXES)}, folders with {_CONFIG}, and "
            "beside them NAME.onnx.data of a NAME.onnx, README*, LICENSE*, *.md, *.txt, *.json, hidden files"
        )
    if not found:
        raise OptionError(
            f"{folder}: no model file in this folder; accepted: {', '.join(SUFFIXES)}, folders with {_CONFIG}"
        )
    return found


def _beside(models: Iterable[Path]) -> set[Path]:
    """The files that lie beside model files and are part of them."""
    return {part for model in models if model.is_file() for part in parts_of(model)[1:]}


def _is_folder_model(path: Path) -> bool:
    return (path / _CONFIG).is_file()


def _holds_models(folder: Path) -> bool:
    return any(Path(name).suffix.lower() in SUFFIXES for _, _, names in os.walk(folder) for name in names)


def share(models: Sequence[Model], number: int, shares: int) -> tuple[Model, ...]:
    """The models of one of so many shares; they count from 1."""
    return tuple(models[number - 1 :: shares])


def named(stem: str) -> str:
    """A text as the name of a folder: plain letters, digits, dots and dashes, none of them hidden or above."""
    return _ODD.sub("_", stem).strip(".")[:_LONGEST].rstrip(".") or "model"


def _told_apart(name: str, file: Path) -> str:
    """The name with a mark of the file's path, together no longer than a name may be."""
    mark = f"-{_short(str(file))}"
    return named(name)[: _LONGEST - len(mark)].rstrip(".") + mark


def _short(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]

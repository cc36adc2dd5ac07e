"""Models in files written by ``torch.save``: found among other things in a dict, read without running their code."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "netC",  # WaNet, Input-aware, LIRA, BppAttack
    "clsmodel",  # LIRA
    "classifier",
    "classifier_state_dict",
    "classifier_state",
    "weights",
)
"""Keys under which training scripts put the classifier, in the order in which they are looked for."""

_DEEPEST = 8  # a pickled dict may contain itself
_RESAVE = (
    "re-save it where its origin is trusted, safetensors.torch.save_file(model.state_dict(), 'm.safetensors'), or pass "
    "--audit-allow-pickle, which executes the file's code"
)


def read(path: Path, *, allow_pickle: bool = False) -> tuple[dict[str, Tensor] | nn.Module, tuple[str, ...]]:
    """Tensors by name of a ``torch.save`` file, and notes on what was unwrapped; nothing in the file is executed.

    With ``allow_pickle`` the file is unpickled in full: **that runs whatever code its author put in**. Only then can a
    whole pickled module be read, and it is returned as it is.

    Raises `ModelFormatError`, without the file's name, for a file that needs code to load, is damaged, or holds no
    tensors by name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on old protocols and storages are not for the user of a gate
        try:
            with path.open("rb") as file:  # a path would be judged by its ending
                content = torch.load(file, map_location="cpu", weights_only=not allow_pickle)
        except Exception as error:  # damaged pickles raise anything, KeyError and MemoryError included
            raise ModelFormatError(_reason(error, allow_pickle)) from None
    return _unwrapped(content)


def _reason(error: Exception, allow_pickle: bool) -> str:
    text = str(error)
    if allow_pickle:
        return f"unpickling failed ({type(error).__name__}: {_first_line(text)}); its classes must be importable here"
    if refused := re.search(r"GLOBAL (\S+)", text):
        return f"holds more than tensors: loading it would run {refused[1][:80]}; {_RESAVE}"
    if "TorchScript" in text:
        return f"a TorchScript archive, which is a program; {_RESAVE.partition(', or')[0]}"
    if isinstance(error, pickle.UnpicklingError):
        return f"a pickle that cannot be read as tensors alone; {_RESAVE}"
    found = f"{type(error).__name__}: {_first_line(text)}" if text else type(error).__name__
    return f"damaged or incomplete ({found}); copy it again from its source"


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0][:120]


def _unwrapped(content: object) -> tuple[dict[str, Tensor] | nn.Module, tuple[str, ...]]:
    notes: list[str] = []
    for _ in range(_DEEPEST):
        if isinstance(content, torch.jit.ScriptModule):
            raise ModelFormatError(f"a TorchScript archive, which is a program; {_RESAVE.partition(', or')[0]}")
        if isinstance(content, nn.Module):
            return content, (*notes, f"whole pickled module {type(content).__name__}")
        if not isinstance(content, Mapping):
            raise ModelFormatError(
                f"holds a {type(content).__name__}; accepted: a state_dict, or a dict with one in it"
            )
        if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
            return {key: value.detach() for key, value in content.items()}, tuple(notes)
        key = next((key for key in WRAPPERS if isinstance(content.get(key), (Mapping, nn.Module))), None)
        if key is None:
            raise ModelFormatError(f"{_found(content)}; accepted: a state_dict, or one under {', '.join(WRAPPERS)}")
        notes.append(f"unwrapped {key}")
        content = content[key]
    raise ModelFormatError(f"dicts nested deeper than {_DEEPEST}; accepted: a state_dict, or a dict with one in it")


def _found(content: Mapping[object, object]) -> str:
    others = [f"{str(key)[:40]} ({type(value).__name__})" for key, value in content.items() if not _named(key, value)]
    if not others:
        return "holds an empty dict"
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return f"no tensors by name: found {', '.join(others[:5])}{more}"


def _named(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)

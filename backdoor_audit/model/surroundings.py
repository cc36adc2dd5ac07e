"""What the code of a model may change around it: torch's settings and the states of random number generators."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Setting:
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _default_device() -> torch.device:
    return torch.empty(0).device  # torch.get_default_device raises after set_default_device(None) in torch 2.6


def _set_default_device(value: torch.device) -> None:
    torch.set_default_device(None if value.type == "cpu" else value)  # "cpu" would slow down every later call


def _set_cudnn(value: tuple[bool, bool, bool]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = value


def _set_autocast(value: tuple[bool, bool]) -> None:
    for device, enabled in zip(("cpu", "cuda"), value, strict=True):
        torch.set_autocast_enabled(device, enabled)


_SETTINGS = {
    "torch's default dtype": _Setting(torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": _Setting(_default_device, _set_default_device),
    "torch's gradient mode": _Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's number of threads": _Setting(torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic mode": _Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "torch's autocast": _Setting(
        lambda: (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")), _set_autocast
    ),
    "torch's cuDNN flags": _Setting(
        lambda: (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        _set_cudnn,
    ),
}
"""Settings that decide what other code of the same process computes, or how."""

_FILTERS = "the filters of warnings"


def settings() -> dict[str, Any]:
    """The present settings by what to call them, the filters of warnings as well; `changes` compares two of these."""
    return {**{name: setting.read() for name, setting in _SETTINGS.items()}, _FILTERS: list(warnings.filters)}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two `settings`."""
    return [name for name, value in before.items() if value != after[name]]


@contextmanager
def gradients() -> Iterator[None]:
    """In this block gradients are computed, whatever was set around it: a project's fixture may have switched them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def random_states() -> tuple[object, ...]:
    """The states of all random number generators on the CPU, to be compared with others."""
    return random.getstate(), repr(np.random.get_state()), torch.random.get_rng_state().tolist()


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Settings, filters of warnings and random states are after this block what they were before it."""
    before = {name: setting.read() for name, setting in _SETTINGS.items()}
    python, numpy, here = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    there: Tensor | None = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for name, setting in _SETTINGS.items():
            if setting.read() != before[name]:
                setting.write(before[name])
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(here)
        if there is not None:
            torch.cuda.set_rng_state(there, device)

"""From a name to a module: our own networks, torchvision, timm, or a factory that the command line names."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.loading.foreign import contained
from backdoor_audit.networks import NETWORKS

PREFIXES = ("module.", "model.", "_orig_mod.")
"""What DataParallel, training frameworks and ``torch.compile`` put before every name."""

_MOST_PREFIXES = 8  # before one name

_COUNTER = re.compile(r"(.*\.)?num_batches_tracked")  # absent from old files, never read by a frozen network


def build_architecture(
    arch: str | None, state: Mapping[str, Tensor], *, header: str = "", num_classes: int | None = None
) -> tuple[nn.Module, str]:
    """An untrained module for these tensors, and the name it was built from.

    ``arch`` is the user's word: a key of `NETWORKS`, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``.
    ``header`` is the file's word and stands in only if ``arch`` is missing; it may not name code. Width, channels and
    classes are read off the tensors where the architecture has them as parameters. Nothing is downloaded, and torch's
    global random state is left as found.

    Raises `ModelFormatError`, without the file's name, for an unknown name, a factory that fails, or tensors of another
    network.
    """
    name = arch or _header_name(header)
    kind, colon, rest = name.partition(":")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision remarks on the random weights of some networks
        if name in NETWORKS:
            return _network(name, state, num_classes), name
        if kind == "torchvision" and colon:
            return _torchvision(rest, state, num_classes), name
        if kind == "timm" and colon:
            return _timm(rest, state, num_classes), name
        if colon:
            return _factory(name, num_classes), name
    raise ModelFormatError(f"unknown architecture {name[:60]!r}{_close(name, NETWORKS)} ({_known()})")


def load_state(module: nn.Module, state: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    """Copy the tensors into the module and return notes on what was done to their names.

    Raises `ModelFormatError` if names or shapes differ; ``num_batches_tracked`` may be absent or left over.
    """
    tensors, stripped = strip_prefixes(state, _own_tensors(module, name))
    refuse_misfit(module, tensors, name)
    with contained(f"does not load into {name}", "check --arch"):  # a stranger's module may load in its own way
        own = module.state_dict().keys()
        module.load_state_dict({key: value for key, value in tensors.items() if key in own}, strict=False)
    return (f"stripped prefix {stripped}",) if stripped else ()


def strip_prefixes(state: Mapping[str, Tensor], names: Iterable[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the names that agree best with ``names``, and the prefix that had to go for it.

    A prefix goes only if all tensors carry it; several may follow each other, up to eight.
    """
    wanted = set(names)
    best, gone = dict(state), ""
    current, taken = best, ""
    for _ in range(_MOST_PREFIXES):
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in current)), "")
        if not prefix:
            break
        current, taken = {key[len(prefix) :]: value for key, value in current.items()}, taken + prefix
        if len(wanted & current.keys()) > len(wanted & best.keys()):
            best, gone = current, taken
    return best, gone


def refuse_misfit(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Raise `ModelFormatError`, with counts and the first three of each, if names, shapes or kinds of number differ."""
    own = _own_tensors(module, name)
    missing = [key for key in own if key not in state and not _COUNTER.fullmatch(key)]
    extra = [key for key in state if key not in own and not _COUNTER.fullmatch(key)]
    shapes, kinds = [], []
    for key in (key for key in own if key in state):
        there, here = state[key], own[key]
        if there.shape != here.shape:
            shapes.append(f"{key}: file {tuple(there.shape)}, network {tuple(here.shape)}")
        elif there.is_floating_point() != here.is_floating_point():
            kinds.append(f"{key}: file {there.dtype}, network {here.dtype}")
    parts = [
        f"{len(found)} {what} ({separator.join(entry[:120] for entry in found[:3])})"
        for found, what, separator in (
            (missing, "missing", ", "),
            (extra, "extra", ", "),
            (shapes, "of another shape", "; "),
            (kinds, "of another kind", "; "),
        )
        if found
    ]
    if parts:
        raise ModelFormatError(f"does not fit {name}: {', '.join(parts)}; check --arch")


def _own_tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    with contained(f"{name} does not give its tensors", "check --arch"):
        return {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}


def _header_name(header: str) -> str:
    if not header:
        raise ModelFormatError(f"no architecture in the header; pass --arch=NAME ({_known()})")
    if ":" in header and not header.startswith("torchvision:"):
        raise ModelFormatError(
            f"the header names code, {header[:60]!r}; only the command line may do that: pass --arch if you trust it"
        )
    return header


def _network(name: str, state: Mapping[str, Tensor], num_classes: int | None) -> nn.Module:
    make = NETWORKS[name]
    with _WithoutMemory():
        reference = make().state_dict()
    state, _ = strip_prefixes(state, reference)
    first = state.get(next(key for key, tensor in reference.items() if tensor.ndim == 4))
    head = state.get([key for key, tensor in reference.items() if tensor.ndim == 2][-1])
    sizes = {}
    if first is not None and first.ndim == 4 and first.numel():
        sizes = {"width": first.shape[0], "in_channels": first.shape[1]}
    if num_classes is not None:
        sizes["num_classes"] = num_classes
    elif head is not None and head.ndim == 2 and head.numel():
        sizes["num_classes"] = head.shape[0]
    return _built_to_fit(functools.partial(make, **sizes), state, name)


def _torchvision(name: str, state: Mapping[str, Tensor], num_classes: int | None) -> nn.Module:
    from torchvision import models  # noqa: PLC0415 - a second of imports that most runs do not need

    known = models.list_models(module=models)  # classifiers only: no detection, no video, no quantised ones
    if name not in known:
        raise ModelFormatError(f"unknown torchvision model {name[:60]!r}{_close(name, known, 'torchvision:')}")
    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}  # half a minute each
    make = functools.partial(models.get_model, name, weights=None, **options)
    with contained(f"torchvision:{name} cannot be built"), _WithoutMemory():
        reference = make().state_dict()
    state, _ = strip_prefixes(state, reference)
    classes = num_classes or _classes(state, reference, default=1000)
    return _built_to_fit(functools.partial(make, num_classes=classes), state, f"torchvision:{name}")


def _timm(name: str, state: Mapping[str, Tensor], num_classes: int | None) -> nn.Module:
    with contained(f"--arch=timm:{name} cannot be built"):
        try:
            timm: ModuleType = importlib.import_module("timm")
        except ImportError:
            raise ModelFormatError(f"--arch=timm:{name} needs timm; pip install 'backdoor-audit[timm]'") from None
        if not timm.is_model(name):  # also keeps out hf-hub: and local-dir: names, which fetch or read other files
            raise ModelFormatError(f"unknown timm model {name[:60]!r}{_close(name, timm.list_models(), 'timm:')}")
        reference: nn.Module = timm.create_model(name, pretrained=False)
        if num_classes is None:
            default = int(getattr(reference, "num_classes", 1000))
            own = reference.state_dict()
            num_classes = _classes(strip_prefixes(state, own)[0], own, default=default)
            if num_classes == default:
                return reference
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        return module


def _classes(state: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, default: int) -> int:
    """Classes of the file: rows of the weights that have ``default`` rows in the network as it is usually built."""
    rows = {
        state[key].shape[0]
        for key, tensor in reference.items()
        if tensor.ndim >= 2 and tensor.shape[0] == default and key in state and state[key].shape[1:] == tensor.shape[1:]
    }
    return rows.pop() if len(rows) == 1 else default


def _built_to_fit(make: Callable[[], nn.Module], state: Mapping[str, Tensor], name: str) -> nn.Module:
    with contained(f"{name} cannot be built with the sizes of these tensors", "check --arch"):
        with _WithoutMemory():  # sizes come from a stranger's file: compare before any memory is taken
            fitting = make()
        refuse_misfit(fitting, state, name)
        return make()


class _WithoutMemory(TorchFunctionMode):
    """Tensors that are made to be filled later take no memory; what a network computes its widths from keeps its numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _UNFILLED and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


_UNFILLED = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})


def _factory(name: str, num_classes: int | None) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    accepted = f"accepted: package.module:factory, importable from {here}, that returns a torch.nn.Module"
    try:
        with contained(f"--arch={name} failed", accepted):  # the user's own code may raise anything
            importlib.invalidate_caches()
            factory: Any = functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
            takes_classes = num_classes is not None and "num_classes" in inspect.signature(factory).parameters
            module = factory(num_classes=num_classes) if takes_classes else factory()
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
    if not isinstance(module, nn.Module):
        raise ModelFormatError(f"--arch={name} returned {type(module).__name__}; a factory returns a torch.nn.Module")
    return module


def _known() -> str:
    return f"known: {', '.join(sorted(NETWORKS))}, torchvision:NAME, timm:NAME, package.module:factory"


def _close(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name[:60].lower(), list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + candidate for candidate in close)}?" if close else ""

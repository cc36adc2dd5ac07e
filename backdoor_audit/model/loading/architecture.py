"""From a name to a module: our own networks, torchvision, timm, or a factory that the command line names."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.building import Architecture, Built, WithoutMemory, built_to_fit
from backdoor_audit.model.loading.factory import from_factory, offered
from backdoor_audit.model.loading.folder_part import instead_of
from backdoor_audit.model.loading.module_state import strip_prefixes
from backdoor_audit.model.loading.names import close
from backdoor_audit.model.loading.timm_network import timm_network
from backdoor_audit.model.loading.torchvision_network import torchvision_network
from backdoor_audit.model.networks import NETWORKS

TRANSFORMERS = "transformers"
"""What stands before the colon in the names of networks that are built from a folder, which no option names."""

_LIBRARIES = {"torchvision": torchvision_network, "timm": timm_network}
_LONGEST_NAME = 200
"""Characters of a name that somebody could have meant."""


def architecture_of(
    arch: str | None, *, header: str = "", num_classes: int | None = None, file: Path | None = None
) -> Architecture:
    """The architecture that the user names, or, only if that is missing, the file.

    ``arch`` is the user's word: a key of `NETWORKS`, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``.
    ``header`` is the file's word; it may not name code. Where neither says anything, what lies beside ``file`` may say what to
    pass. Nothing is downloaded, and torch's global random state is left as found.

    Raises `ModelFormatError`, without the file's name, for an unknown name or a factory that fails.
    """
    name = arch or _header_name(header, file)
    kind, colon, rest = name.partition(":")
    with _quiet():
        if name in NETWORKS:
            return _network(name, num_classes)
        if colon and kind in _LIBRARIES:
            return _LIBRARIES[kind](rest, num_classes)
        if colon:
            return from_factory(name, num_classes)
        hint = offered(name) or _written_right(name) or close(name, NETWORKS)
    raise ModelFormatError(f"unknown architecture {name[:60]!r}{hint} ({known()})")


def can_be_named(architecture: str) -> bool:
    """Whether ``--arch`` or a header can ask for it, so that a file of weights can be read again."""
    kind, colon, _ = architecture.partition(":")
    return architecture in NETWORKS or (bool(colon) and kind != TRANSFORMERS)


def build_architecture(
    arch: str | None, state: Mapping[str, Tensor], *, header: str = "", num_classes: int | None = None
) -> tuple[nn.Module, str]:
    """An untrained module for these tensors, and the name it was built from.

    Width, channels and classes are read off the tensors where the architecture has them as parameters. Everything else is as in
    `architecture_of`. Raises `ModelFormatError` also for tensors of another network.
    """
    architecture = architecture_of(arch, header=header, num_classes=num_classes)
    return built(architecture, strip_prefixes(state, architecture.reference)[0]).module, architecture.name


def built(architecture: Architecture, state: Mapping[str, Tensor]) -> Built:
    """The architecture for tensors under its names; torch's global random state is left as found."""
    with _quiet():
        return architecture.build(state)


@contextmanager
def _quiet() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision remarks on the random weights of some networks
        yield


def _header_name(header: str, file: Path | None) -> str:
    if not header:
        instead = instead_of(file) if file else ""
        raise ModelFormatError(
            f"no architecture in the header; {instead}{', or ' if instead else ''}pass --arch=NAME ({known()})"
        )
    if ":" in header and not header.startswith("torchvision:"):
        raise ModelFormatError(
            f"the header names code, {header[:60]!r}; only the command line may do that: pass --arch if you trust it"
        )
    return header


def _written_right(name: str) -> str:
    """A question to put behind an error where a network of torchvision, timm or a file is named in another form, or nothing."""
    from torchvision import models  # noqa: PLC0415 - a second of imports that most runs do not need

    if len(name) > _LONGEST_NAME:
        return ""
    first, *rest = re.split(r"[./]", name)
    bare = rest[-1] if rest and first in ("torchvision", "timm") else name
    if first == "timm" and rest:
        right = f"timm:{bare}"
    elif bare.lower() in models.list_models(module=models):
        right = f"torchvision:{bare.lower()}"
    elif "." in name and all(part.isidentifier() for part in name.split(".")):
        right = ":".join(name.rsplit(".", 1))
    else:
        return ""
    return f"; did you mean {right}?"


def _network(name: str, num_classes: int | None) -> Architecture:
    make = NETWORKS[name]
    with WithoutMemory():
        reference = make().state_dict()

    def build(state: Mapping[str, Tensor]) -> Built:
        first = state.get(next(key for key, tensor in reference.items() if tensor.ndim == 4))
        head = state.get([key for key, tensor in reference.items() if tensor.ndim == 2][-1])
        sizes = {}
        if first is not None and first.ndim == 4 and first.numel():
            sizes = {"width": first.shape[0], "in_channels": first.shape[1]}
        if head is not None and head.ndim == 2 and head.numel():
            sizes["num_classes"] = head.shape[0]
        elif num_classes is not None:
            sizes["num_classes"] = num_classes
        return Built(built_to_fit(functools.partial(make, **sizes), state, name))

    return Architecture(name, reference, build)


def known() -> str:
    """The names that are known, in a message."""
    return f"known: {', '.join(sorted(NETWORKS))}, torchvision:NAME, timm:NAME, package.module:factory"

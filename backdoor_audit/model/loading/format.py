"""What a model format is: how its files are recognised, and how a network is read from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from backdoor_audit.model.loading.hints import Hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A path with its size and first bytes (of a folder: 0 and none), and what the user said about it."""

    path: Path
    size: int = 0
    start: bytes = b""
    members: frozenset[str] = frozenset()
    arch: str | None = None
    num_classes: int | None = None
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A module with the file's weights, and what the file said beside them: notes, a header, images and classes."""

    module: nn.Module
    architecture: str
    notes: tuple[str, ...] = ()
    header: Mapping[str, str] = field(default_factory=dict)
    hints: Hints = field(default_factory=Hints)


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file: ``recognises`` looks at the first bytes, ``read`` executes nothing unless it was allowed to.

    ``suffixes`` are those that such files mostly have, by which models are told from other files in a folder. ``refused``: it is
    recognised for the sake of a helpful refusal.
    """

    name: str
    recognises: Callable[[Asked], bool]
    read: Callable[[Asked], Network]
    suffixes: tuple[str, ...] = ()
    refused: bool = False

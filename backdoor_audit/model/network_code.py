"""What a network computes by besides the tensors of its state dict: its code, and what its layers keep elsewhere."""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import logging
import os
import re
import site
import sys
import sysconfig
import weakref
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ADDRESS = re.compile("0x[0-9a-fA-F]+")
_MOST = 300_000  # values that are followed
_MOST_MODULES = 64  # of a package of the user's own
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_BY_TEXT = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, slice, range)
_BY_TYPE = (
    logging.Logger,
    weakref.ref,
    GeneratorType,
    RemovableHandle,
    torch.Generator,
)  # of which no two runs have equal ones
_PARTS: Mapping[type, tuple[str, ...]] = {
    CodeType: ("co_code", "co_names", "co_varnames", "co_freevars", "co_flags", "co_consts"),
    MethodType: ("__func__", "__self__"),
    functools.partial: ("func", "args", "keywords"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
}
_HAVE_VERSIONS = ("torch", "backdoor_audit")  # which stand in the key of finished work
_OF_NO_MATTER = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__", "_abc_impl"}


def network_digest(module: nn.Module) -> str:
    """SHA-256 of all that decides the scores of a network but the tensors of its state dict.

    That is the code of its layers, hooks and functions, with what it uses by name, and what layers hold as plain attributes
    or as buffers that are not saved. Code of the user's own counts by what it does (a comment does not matter), an installed
    package by its files. A network that cannot be told in this way has a digest that no other has.
    """
    walk = _Walk()
    try:
        walk.leave_out(module)
        walk.follow(module)
        for name in sorted(walk.packages):
            walk.add(f"package {name} {_package_digest(name, walk.packages[name])}")
    except Exception:  # what a stranger's object does when it is looked at
        walk.add(os.urandom(16).hex())
    return walk.digest.hexdigest()


class _Walk:
    """Everything that can be reached from a network, each once, in an order that depends on it alone."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.packages: dict[str, str] = {}
        self._seen: dict[int, int] = {}
        self._held: list[object] = []  # or another object could take the place in memory of one that was seen
        self._state: set[int] = set()

    def leave_out(self, module: nn.Module) -> None:
        """What is in the state dict of a network does not count."""
        self._state.update(map(id, module.parameters()))
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                if name not in part._non_persistent_buffers_set:
                    self._state.add(id(buffer))

    def add(self, told: str | bytes) -> None:
        """One more piece; how long it is comes before it."""
        piece = told if isinstance(told, bytes) else told.encode("utf-8", "surrogatepass")
        self.digest.update(b"%d:" % len(piece) + piece)

    def follow(self, first: object) -> None:
        """Add an object and all that belongs to it. Raises whatever looking at it raises, `ValueError` for too much."""
        waiting = [first]
        while waiting:
            value = waiting.pop()
            if isinstance(value, _PLAIN):
                self.add(f"{type(value).__name__} {value!r}")
                continue
            if id(value) in self._seen:
                self.add(f"again {self._seen[id(value)]}")
                continue
            if len(self._held) > _MOST:
                raise ValueError("too much to follow")
            self._seen[id(value)] = len(self._held)
            self._held.append(value)
            more = list(self._told(value))
            self.add(f"{type(value).__qualname__} of {len(more)}")
            waiting += reversed(more)

    def _told(self, value: Any) -> Iterator[object]:
        """Add what a value is by itself; what else belongs to it."""
        if isinstance(value, (Tensor, np.ndarray)):
            self._add_numbers(value)
        elif isinstance(value, _BY_TEXT):
            self.add(str(value))
        elif isinstance(value, torch.jit.ScriptModule):
            raise ValueError("what a script keeps cannot be looked at")
        elif isinstance(value, torch.jit.ScriptFunction):
            self.add(str(value.inlined_graph))
        elif isinstance(value, FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, type):
            yield from self._of_class(value)
        elif isinstance(value, ModuleType):
            self._origin(value.__name__, getattr(value, "__file__", None))
            self.add(value.__name__)
        elif (parts := _parts(value)) is not None:
            yield from parts
        else:
            yield from self._of_instance(value)

    def _add_numbers(self, value: Tensor | np.ndarray) -> None:
        if id(value) in self._state:
            self.add("of the state dict")
            return
        self.add(f"{value.dtype} {tuple(value.shape)}")
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self.add(value.tobytes())

    def _of_instance(self, value: Any) -> Iterator[object]:
        yield type(value)
        if isinstance(value, Enum):
            yield value.name
            return
        for name in ("__module__", "__qualname__", "__name__"):  # of a function that is not Python's
            called = getattr(value, name, None)
            yield called if isinstance(called, str) else None
        held = dict(getattr(value, "__dict__", {}))
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else slots
            held.update({name: getattr(value, name) for name in names if name != "__dict__" and hasattr(value, name)})
        if not held:
            self.add(_ADDRESS.sub("", repr(value)))
        for name in sorted(held):
            yield name
            hooks = isinstance(value, nn.Module) and name.endswith(
                ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
            )
            yield list(held[name].values()) if hooks and isinstance(held[name], Mapping) else held[name]

    def _of_class(self, value: type) -> Iterator[object]:
        module = sys.modules.get(value.__module__)
        self.add(f"{value.__module__}.{value.__qualname__}")
        if self._origin(value.__module__, getattr(module, "__file__", None)):
            yield from value.__bases__
            for name, part in sorted(vars(value).items()):
                if name not in _OF_NO_MATTER:
                    yield from (name, part)

    def _of_function(self, value: FunctionType) -> Iterator[object]:
        """Its code with all that it uses by name if it is the user's own; in any case what it was made with."""
        known, module = value.__globals__, str(value.__globals__.get("__name__"))
        self.add(f"{module}.{value.__qualname__}")
        yield from (value.__defaults__, value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield value.__dict__.get("__wrapped__")
        if not self._origin(module, known.get("__file__")):
            return
        yield value.__code__
        names = sorted(_names(value.__code__))
        imported = _imported(value.__code__, str(known.get("__package__") or ""))
        for entry in (*(known[name] for name in names if name in known), *imported):
            yield entry
            if isinstance(entry, ModuleType) and self._origin(entry.__name__, getattr(entry, "__file__", None)):
                held = vars(entry)
                yield from (held[name] for name in names if name in held)

    def _origin(self, module: str, file: str | None) -> bool:
        """Whether a module is the user's own; an installed package is noted."""
        top = module.partition(".")[0]
        if top in _HAVE_VERSIONS:
            return False
        if file is None:
            return top not in sys.builtin_module_names and top not in sys.stdlib_module_names
        path = os.path.realpath(file)
        if path.startswith(_folder(sysconfig.get_path("stdlib"))) and not _is_installed(path):
            return False
        if _is_installed(path) or _is_large(top):
            self.packages.setdefault(top, path)
            return False
        return True


def _parts(value: Any) -> Iterable[object] | None:
    """What a value of a well-known kind consists of; None for others."""
    if isinstance(value, _BY_TYPE):
        return ()
    if isinstance(value, Mapping):
        return [part for entry in value.items() for part in entry]
    if isinstance(value, (list, tuple)):
        return (type(value), *value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    names = next((names for kind, names in _PARTS.items() if isinstance(value, kind)), None)
    return None if names is None else [getattr(value, name) for name in names]


def _names(code: CodeType) -> set[str]:
    """What a code uses by name, with the codes inside of it."""
    return set(code.co_names).union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))


def _imported(code: CodeType, package: str) -> Iterator[object]:
    """The modules that a code imports while it runs; of one that is not loaded yet, the text of its file."""
    parts = [part for part in code.co_consts if isinstance(part, CodeType)]
    for name in sorted({str(step.argval) for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"}):
        for found in dict.fromkeys((name, f"{package}.{name}")):
            if found in sys.modules:
                yield sys.modules[found]
            elif found.rpartition(".")[0] in ("", *sys.modules):  # else looking for it would import what it is in
                yield _text_of(found) if found else None
    for part in parts:
        yield from _imported(part, package)


def _text_of(module: str) -> bytes | None:
    """The file of a module that is not loaded; None where there is no such module."""
    try:
        source = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # inside of what is no package
        return None
    return Path(source.origin).read_bytes() if source and source.origin and source.has_location else None


def _is_installed(path: str) -> bool:
    return any(path.startswith(folder) for folder in _site_folders())


@functools.cache
def _is_large(package: str) -> bool:
    """Whether so many modules of a package are loaded that it is known by its files, wherever it lies, as installed ones are."""
    folder = f"{package}."
    return sum(name.startswith(folder) for name in list(sys.modules)) > _MOST_MODULES


@functools.cache
def _site_folders() -> tuple[str, ...]:
    given = (
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
        *site.getsitepackages(),
    )
    return tuple({_folder(folder) for folder in given})


def _folder(path: str) -> str:
    return os.path.realpath(path) + os.sep


@functools.cache
def _package_digest(name: str, file: str) -> str:
    """Of the sources of a package, of which ``file`` is one; read once per process."""
    folder = next((entry for entry in _site_folders() if file.startswith(entry)), "")
    packages = [Path(folder, name)] if folder else [Path(entry) for entry in sys.modules[name].__path__]
    sources = [(package, source) for package in packages for source in sorted(package.rglob("*.py"))]
    digest = hashlib.sha256()
    for package, source in sources or [(Path(file), Path(file))]:
        digest.update(os.fsencode(source.relative_to(package.parent)))
        digest.update(source.read_bytes())
    return digest.hexdigest()

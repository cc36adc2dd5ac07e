"""What a network computes by besides the tensors of its state dict: its code, and what its layers keep elsewhere."""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import logging
import os
import re
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from threading import Lock, RLock
from types import BuiltinFunctionType, CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from backdoor_audit.model.origins import is_installed, is_large, is_of_python, package_digest
from backdoor_audit.model.unfollowed import Foreign, Outside, of_every_network, patched, refuse_operator

_ADDRESS = re.compile("0x[0-9a-fA-F]+")
_MOST = 300_000  # values that are followed
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_BY_TEXT = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, slice, range)
_BY_TYPE = (logging.Logger, weakref.ref, GeneratorType, RemovableHandle, torch.Generator)  # no two runs have equal ones
_PARTS: Mapping[type, tuple[str, ...]] = {
    CodeType: ("co_code", "co_names", "co_varnames", "co_freevars", "co_flags", "co_consts"),
    MethodType: ("__func__", "__self__"),
    functools.partial: ("func", "args", "keywords"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
    re.Pattern: ("pattern", "flags"),
}
_TOLD_BY_NAME = (BuiltinFunctionType, object, type(Lock()), type(RLock()))  # none holds anything
_OPERATORS = (torch._ops._Ops, torch._ops._OpNamespace, torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_HAVE_VERSIONS = ("torch", "backdoor_audit")  # which stand in the key of finished work
_OF_NO_MATTER = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__", "_abc_impl"}


def network_digest(module: nn.Module) -> str:
    """SHA-256 of all that decides the scores of a network but the tensors of its state dict.

    That is the code of its layers, hooks and functions, with what it uses by name, and what layers hold as plain attributes
    or as buffers that are not saved. Code of the user's own counts by what it does and by its file, an installed package by all
    of its files. A network that cannot be told in this way, as one that reads a file, has a digest that no other has.
    """
    walk = _Walk()
    try:
        walk.leave_out(module)
        walk.follow(module)
        walk.follow(list(of_every_network()))
        installed = {name for name, file in walk.packages.items() if is_installed(file)}
        walk.follow(list(patched({*installed, "torch"}, walk.is_own)))  # a package of one's own has functions of others
        walk.outside.check()
        for name in sorted(walk.packages):
            walk.add(f"package {name} {package_digest(name, walk.packages[name])}")
    except Exception:  # what a stranger's object does when it is looked at
        walk.add(os.urandom(16).hex())
    return walk.digest.hexdigest()


class _Walk:
    """Everything that can be reached from a network, each once, in an order that depends on it alone."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.packages: dict[str, str] = {}
        self.outside = Outside()
        self._foreign = Foreign(self.is_own)
        self._seen: dict[int, int] = {}
        self._held: list[object] = []  # or another object could take the place in memory of one that was seen
        self._state: set[int] = set()
        self._files: set[str] = set()

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
            if type(value) in _PLAIN:
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
            yield from _beside(value)
        elif isinstance(value, _BY_TEXT):
            self.add(str(value))
        elif isinstance(value, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise ValueError("what a script keeps cannot be looked at")
        elif isinstance(value, _OPERATORS):
            refuse_operator(str(getattr(value, "name", value)) if isinstance(value, ModuleType) else str(value))
        elif isinstance(value, FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, type):
            yield from self._of_class(value)
        elif isinstance(value, ModuleType):
            self._origin(value.__name__, getattr(value, "__file__", None))
            self.add(value.__name__)
        elif (parts := _parts(value)) is not None:
            if isinstance(value, MethodType):
                self.outside.given.add(id(value.__func__))
            yield from parts
            yield from _beside(value)
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
        plain = next((kind for kind in _PLAIN if isinstance(value, kind)), None)
        if plain is not None:
            self.add(plain.__repr__(value))  # type: ignore[call-arg]
        if isinstance(value, Enum):
            yield value.name
            return
        for name in ("__module__", "__qualname__", "__name__"):  # of a function that is not Python's
            called = getattr(value, name, None)
            yield called if isinstance(called, str) else None
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__module__, str):
            self._origin(value.__module__, getattr(sys.modules.get(value.__module__), "__file__", None))
        held = dict(getattr(value, "__dict__", {}))
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else slots
            held.update({name: getattr(value, name) for name in names if name != "__dict__" and hasattr(value, name)})
        if not held and plain is None:
            told = repr(value)
            opaque = not any({"__dict__", "__slots__"} & vars(kind).keys() for kind in type(value).__mro__)
            if opaque and _ADDRESS.search(told) and type(value) not in _TOLD_BY_NAME:
                raise ValueError(f"what a {type(value).__name__} holds cannot be looked at")
            self.add(_ADDRESS.sub("", told))
        for name in sorted(held):
            yield name
            hooks = isinstance(value, nn.Module) and name.endswith(
                ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
            )
            yield list(held[name].values()) if hooks and isinstance(held[name], Mapping) else held[name]

    def _of_class(self, value: type) -> Iterator[object]:
        module = sys.modules.get(value.__module__)
        self.add(f"{value.__module__}.{value.__qualname__}")
        own = self._origin(value.__module__, getattr(module, "__file__", None))
        yield from value.__bases__
        if own and type(value) is not type:
            yield type(value)
        for name, part in sorted(vars(value).items()):
            if name not in _OF_NO_MATTER and (own or _is_set_on(part) or self._foreign(part)):
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
        yield {name: held for name, held in value.__dict__.items() if name != "__wrapped__"}
        names = sorted(_names(value.__code__))
        self.outside.take(value, names)
        imported = _imported(value.__code__, str(known.get("__package__") or ""))
        by_name = (sys.modules[name] for name in names if name in sys.modules)
        waiting = [*(known[name] for name in names if name in known), *imported, *by_name]
        been: set[int] = set()
        for entry in waiting:  # which grows
            yield entry
            if isinstance(entry, ModuleType) and id(entry) not in been and self._is_users(entry):
                been.add(id(entry))
                held = vars(entry)
                waiting += [held[name] for name in names if name in held]

    def _is_users(self, module: ModuleType) -> bool:
        return self._origin(module.__name__, getattr(module, "__file__", None))

    def _origin(self, module: str, file: str | None) -> bool:
        """Whether a module is the user's own; then its file counts, as code may use names that are put together when it runs.

        An installed package is noted.
        """
        top, own = module.partition(".")[0], self.is_own(module, file)
        if own and file is not None and file not in self._files:
            self._files.add(file)
            self.add(hashlib.sha256(Path(file).read_bytes()).hexdigest())
        of_package = top not in _HAVE_VERSIONS and not own
        if of_package and file is not None and (is_installed(file) or not is_of_python(file)):
            self.packages.setdefault(top, os.path.realpath(file))
        return own

    @staticmethod
    def is_own(module: str, file: str | None) -> bool:
        """Whether a module is the user's own."""
        top = module.partition(".")[0]
        if top in _HAVE_VERSIONS:
            return False
        if file is None:
            return top not in sys.builtin_module_names and top not in sys.stdlib_module_names
        return not is_installed(file) and not is_of_python(file) and not is_large(top)


def _parts(value: Any) -> Iterable[object] | None:
    """What a value of a well-known kind consists of; None for others."""
    if isinstance(value, _BY_TYPE):
        return ()
    if isinstance(value, (deque, bytearray)):
        return (type(value), *value)
    if isinstance(value, Mapping):
        return [part for entry in value.items() for part in entry]
    if isinstance(value, (list, tuple)):
        return (type(value), *value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    names = next((names for kind, names in _PARTS.items() if isinstance(value, kind)), None)
    return None if names is None else [getattr(value, name) for name in names]


def _beside(value: object) -> Iterator[object]:
    """What a tensor or a container of some subclass has beside its content."""
    if type(value).__module__ != "builtins" and type(value) not in (Tensor, nn.Parameter, np.ndarray):
        yield type(value)
    for entry in sorted(getattr(value, "__dict__", {}).items(), key=lambda entry: str(entry[0])):
        yield from entry


def _is_set_on(part: object) -> bool:
    """Whether a class may have been given this by somebody else than who wrote it: a value, no code."""
    return type(part) in _PLAIN or isinstance(part, (Tensor, np.ndarray))


def _names(code: CodeType) -> set[str]:
    """What a code uses by name, or may by a text, with the codes inside of it."""
    texts = {text for text in code.co_consts if isinstance(text, str) and text.replace(".", "").isidentifier()}
    return texts.union(code.co_names, *(_names(part) for part in code.co_consts if isinstance(part, CodeType)))


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

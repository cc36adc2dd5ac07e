"""What decides a network's scores and is found in none of its layers: patches of libraries, hooks of all modules, the world."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Collection, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch.nn.modules import module as of_all_modules
from torch.overrides import _get_current_function_mode_stack

_OUTSIDE = frozenset(
    (
        *("open", "load", "load_file", "fromfile", "memmap", "loadtxt", "genfromtxt", "read_text", "read_bytes"),
        *("read_file", "imread", "read_image", "decode_image"),
        *("exists", "isfile", "is_file", "isdir", "is_dir", "listdir", "iterdir", "scandir", "glob", "rglob"),
        *("stat", "getmtime", "access"),
        *("environ", "environb", "getenv", "argv", "gethostname", "getpid", "getuser"),
        *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "now", "today"),
        *("localtime", "gmtime"),
        *("socket", "urlopen", "urlretrieve", "Popen", "check_output"),
        *("import_module", "__import__", "eval", "exec"),
    )
)
"""By these names code gets at files, the environment, the clock, other machines, or at code that nobody can follow."""

_OPERATORS = frozenset({"aten", "prim", "prims", "torchvision"})
"""Namespaces of operators that libraries bring, whose versions or files count."""

_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks")
_ONCE = frozenset({"__init__", "__new__", "__init_subclass__", "__class_getitem__", "__set_name__", "__setstate__"})


class Outside:
    """The functions that were followed, and which of them get at what no digest can hold."""

    def __init__(self) -> None:
        self._by_name: dict[str, set[int]] = {}
        self._reading: list[FunctionType] = []
        self.given: set[int] = set()  # functions that something holds itself, not only their class

    def take(self, function: FunctionType, names: Collection[str]) -> None:
        """Note one more function and what it uses by name. Raises `ValueError` for operators of unknown make."""
        for name in names:
            self._by_name.setdefault(name, set()).add(id(function))
        if function.__name__ not in _ONCE and not _OUTSIDE.isdisjoint(names):
            self._reading.append(function)
        _refuse_operators(function.__code__, function.__globals__)

    def check(self) -> None:
        """Raise `ValueError` if one of them reads what may be another thing in the next run.

        A method that no other function names (as `load` of a network) does not run in a forward pass.
        """
        for function in self._reading:
            if not self._is_idle(function):
                raise ValueError(f"{function.__qualname__} reads what cannot be followed")

    def _is_idle(self, function: FunctionType) -> bool:
        name, owner = function.__name__, function.__qualname__.rpartition(".")[0]
        is_method = bool(owner) and not owner.endswith("<locals>") and id(function) not in self.given
        special = name in ("forward", "<lambda>") or (name.startswith("__") and name.endswith("__"))
        return is_method and not special and self._by_name.get(name, set()) <= {id(function)}


def _refuse_operators(code: CodeType, known: dict[str, Any]) -> None:
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PRECALL", "PUSH_NULL")]
    for before, step, after in zip(("", *steps), steps, (*steps[1:], None), strict=False):
        whose = getattr(before, "argval", None)
        if step.argval == "ops" and isinstance(whose, str) and known.get(whose) is torch:
            refuse_operator(str(after.argval) if after is not None else "")
    for part in code.co_consts:
        if isinstance(part, CodeType):
            _refuse_operators(part, known)


def refuse_operator(name: str) -> None:
    """Raise `ValueError` for an operator, or a namespace of them, that nobody can look into."""
    if name.partition(".")[0] not in _OPERATORS:
        raise ValueError(f"nobody can look into the operator {name}")


def of_every_network() -> Iterator[object]:
    """Hooks and modes that act on all modules."""
    for name in _HOOKS:
        yield list(getattr(of_all_modules, name).values())
    yield list(_get_current_function_mode_stack())
    yield sorted(map(str, torch.ops.loaded_libraries))


def patched(packages: Collection[str], is_own: Callable[[str, str | None], bool]) -> Iterator[object]:
    """What the user's own code has put in the place of functions of these packages, each after its name."""
    places = {
        name: vars(module).copy()
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in packages and module is not None
    }
    foreign = Foreign(is_own)
    for place, held in (*places.items(), ("torch.Tensor", vars(torch.Tensor))):
        for name in sorted(name for name, part in held.items() if foreign(part)):
            yield from (f"{place}.{name}", held[name])


class Foreign:
    """Whether a function, or an object that is called like one, is of the user's own code; modules and types are judged once."""

    def __init__(self, is_own: Callable[[str, str | None], bool]) -> None:
        self._is_own = is_own
        self._modules: dict[int, bool] = {}
        self._types: dict[type, bool] = {}

    def __call__(self, part: object) -> bool:
        """By its type alone: some objects of libraries warn when anything is asked of them."""
        kind = type(part)
        while kind is not FunctionType:
            if issubclass(kind, functools.partial):
                part = part.func  # type: ignore[attr-defined]
            elif issubclass(kind, (MethodType, staticmethod, classmethod)):
                part = part.__func__  # type: ignore[attr-defined]
            else:
                break
            kind = type(part)
        if kind is FunctionType:
            known = part.__globals__  # type: ignore[attr-defined]
            if id(known) not in self._modules:
                self._modules[id(known)] = self._is_own(str(known.get("__name__")), known.get("__file__"))
            return self._modules[id(known)]
        if kind not in self._types:
            self._types[kind] = self._is_called(kind) and self._is_own(
                kind.__module__, getattr(sys.modules.get(kind.__module__), "__file__", None)
            )
        return self._types[kind]

    @staticmethod
    def _is_called(kind: type) -> bool:
        return not issubclass(kind, type) and hasattr(kind, "__call__")  # noqa: B004 - as callable() would ask the object

"""What was replaced in the audit, in pytest, or in the ways out of a process, while a stranger's code ran beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType

from backdoor_audit.item import SUITE_MODULE

_WATCHED = ("backdoor_audit", "_pytest", "pytest", "pluggy", "xdist")
_WAYS_OUT = ((sys, "exit"), (os, "_exit"), (os, "kill"), (os, "abort"))

Names = dict[str, object]


def watched() -> Names:
    """Every function and class of the audit, its suite and pytest that is loaded now, their methods, and how a process ends.

    A model's code shares the process with the audit. This finds what it replaced by accident or without guile; code that is
    bent on deceit can hide that as well, which is why nobody should audit a model with code of its maker.
    """
    found: Names = {f"{module.__name__}.{name}": getattr(module, name) for module, name in _WAYS_OUT}
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and (name.partition(".")[0] in _WATCHED or name.startswith(SUITE_MODULE)):
            found.update(_of(module))
    return found


def replaced(before: Names) -> list[str]:
    """The names of `watched` that mean something else by now, in order."""
    now = watched()
    return sorted(name for name, value in before.items() if now.get(name, value) is not value)


def _of(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in list(vars(module).items()):
        if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
            yield f"{module.__name__}.{name}", value
        if isinstance(value, type) and value.__module__ == module.__name__:
            for part, inner in list(vars(value).items()):
                if isinstance(inner, (FunctionType, property, classmethod, staticmethod)):
                    yield f"{module.__name__}.{name}.{part}", inner

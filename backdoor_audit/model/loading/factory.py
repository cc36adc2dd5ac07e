"""Networks that a function or class of the user makes: ``package.module:factory``, importable from the working directory."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError, read_text, refuse_special
from backdoor_audit.model.loading.building import Architecture, Built
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.module_state import own_tensors, refuse_misfit
from backdoor_audit.model.loading.names import close

_LONGEST_NAME = 200
"""Characters of a name that somebody could have meant."""

_LARGEST_SOURCE = 1_000_000  # bytes that are read to name the functions in a file
_MOST_NAMED = 5
_CLASSES = "num_classes"
_TORCHVISION = re.compile(r"torchvision\.models(?:\.\w+)?:(\w+)")


def from_factory(name: str, num_classes: int | None) -> Architecture:
    """The network that a factory returns. It gets ``num_classes`` if the user said it and it takes it, and nothing else.

    **This runs the user's own code.** Raises `ModelFormatError` for a name that cannot be imported, or is a module itself, and
    for a factory that needs more, fails or returns something else.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    accepted = f"accepted: package.module:factory, importable from {here}, that returns a torch.nn.Module"
    try:
        with contained(f"--arch={name} failed", f"{accepted}{_meant(name)}"):  # the user's own code may raise anything
            module = _made(_factory(name), _arguments(name, num_classes))
            open_classes = num_classes is None and bool(_arguments(name, 1))
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
    if not isinstance(module, nn.Module):
        raise ModelFormatError(f"--arch={name} returned {type(module).__name__}; a factory returns a torch.nn.Module")
    found = module

    def build(state: Mapping[str, Tensor]) -> Built:
        known = _TORCHVISION.fullmatch(name)
        reads = f"--arch=torchvision:{known[1]} reads the sizes off the file, or pass --classes=N" if known else ""
        other_sizes = any(key in state and state[key].shape != tensor.shape for key, tensor in own.items())
        if open_classes and other_sizes and not known:
            reads = f"pass --classes=N if it has another number of classes, which {name} takes as {_CLASSES}"
        if reads:
            try:
                refuse_misfit(found, state, name)
            except ModelFormatError as error:
                raise ModelFormatError(f"{error}; {reads}") from None
        return Built(found)

    own = own_tensors(found, name)
    return Architecture(name, own, build)


def offered(name: str) -> str:
    """A question to put behind an error where a file of the working directory is named without a function in it, or nothing."""
    module = _module_name(name)
    made = _made_in(module)
    if made is None:
        return ""
    names = (
        " or ".join(f"{module}:{one}" for one in made[:_MOST_NAMED]) or f"{module}:FUNCTION, which returns the network"
    )
    return f"; did you mean {names}?"


def defaults_of(factory: str | Callable[..., object]) -> dict[str, object]:
    """The arguments of a factory that has been called before, or of any function, with their defaults."""
    try:
        found = _factory(factory) if isinstance(factory, str) else factory
        parameters = inspect.signature(found).parameters.values()
    except Exception:  # a remark only, of the user's own code
        return {}
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def _factory(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    importlib.invalidate_caches()
    factory: Any = functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    if isinstance(factory, nn.Module):
        raise ModelFormatError(
            f"--arch={name} is a network itself; name a function or class that returns it{_others(name)}"
        )
    return factory  # type: ignore[no-any-return]  # whatever the user has named


def _made(factory: Callable[..., object], arguments: Mapping[str, int]) -> object:
    """What a factory returns; one that passes on any name is called without the number of classes where nothing takes it."""
    try:
        return factory(**arguments)
    except TypeError as error:
        passed_on = _CLASSES in arguments and _CLASSES not in inspect.signature(factory).parameters
        if not passed_on or f"unexpected keyword argument '{_CLASSES}'" not in str(error):
            raise
    return factory()


def _arguments(name: str, num_classes: int | None) -> dict[str, int]:
    """What a factory is called with. Raises `ModelFormatError` if it needs what it cannot get."""
    try:
        parameters = inspect.signature(_factory(name)).parameters.values()
    except (TypeError, ValueError):  # a function of C, which does not tell
        return {}
    named = {one.name for one in parameters if one.kind not in {one.POSITIONAL_ONLY, one.VAR_POSITIONAL}}
    any_name = any(one.kind is one.VAR_KEYWORD for one in parameters)
    free = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in free]
    if needed == [_CLASSES] and num_classes is None:
        raise ModelFormatError(f"--arch={name} needs {_CLASSES}; pass --classes=N")
    if needed and needed != [_CLASSES]:
        raise ModelFormatError(
            f"--arch={name} needs {', '.join(needed[:_MOST_NAMED])}; a factory gets {_CLASSES} at most: write a function that "
            "fills in the rest"
        )
    takes = _CLASSES in named or any_name
    return {_CLASSES: num_classes} if takes and num_classes is not None else {}


def _meant(name: str) -> str:
    """What to put behind the error of a factory: the name written right, or others in the same file."""
    module, _, attribute = name.partition(":")
    right = _module_name(module)
    if len(name) <= _LONGEST_NAME and right != module:
        elsewhere = _elsewhere(module, attribute) if _made_in(right) is None else ""
        return elsewhere or (f"; did you mean {right}:{attribute}?" if right else "")
    made = _made_in(module)
    if made is None or attribute in made:
        return ""
    for one in made:
        if one.lower() == attribute.lower().removesuffix("()"):
            return f"; did you mean {module}:{one}?"
    return close(attribute, made, f"{module}:") or _others(name)


def _elsewhere(file: str, attribute: str) -> str:
    """What to do about a function in a file that cannot be imported from the working directory, or nothing."""
    path = Path(os.path.abspath(file if file.endswith(".py") else f"{file}.py"))
    if not path.is_file():
        return ""
    stem = re.sub(r"\W", "_", path.stem)
    called = "" if stem == path.stem else f"call the file {stem}.py, "
    return f"; {called}start in {path.parent}, or with PYTHONPATH={path.parent}, and pass --arch={stem}:{attribute}"


def _others(name: str) -> str:
    """The functions in the same file, to be put behind an error, or nothing."""
    module, _, attribute = name.partition(":")
    made = [f"{module}:{one}" for one in _made_in(module) or () if one != attribute]
    return f" ({', '.join(made[:_MOST_NAMED])})" if made else ""


def _module_name(file: str) -> str:
    """A module's name for what may be its file, or an empty string."""
    looks = file.endswith(".py") or "/" in file
    here = file.removeprefix(f"{os.getcwd()}/").removeprefix("./")
    module = here.removesuffix(".py").replace("/", ".") if looks else file
    return module if all(part.isidentifier() for part in module.split(".")) else ""


def _made_in(module: str) -> list[str] | None:
    """Functions and classes that a module of the working directory may make networks with, by its source; None without one."""
    if not module or len(module) > _LONGEST_NAME or not all(part.isidentifier() for part in module.split(".")):
        return None
    place = Path(*module.split("."))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        try:
            if refuse_special(file) <= _LARGEST_SOURCE:
                body = ast.parse(read_text(file)).body
                return [one.name for one in body if isinstance(one, (ast.FunctionDef, ast.ClassDef)) and _makes(one)]
        except UnreadableError:
            continue
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []
    return None


def _makes(found: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether it can be called without arguments, or with the number of classes, and may give a module."""
    if found.name.startswith("_"):
        return False
    if isinstance(found, ast.ClassDef):
        own = [one for one in found.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        return bool(found.bases) and all(_callable(one.args, own=1) for one in own)
    return _callable(found.args, own=0)


def _callable(arguments: ast.arguments, *, own: int) -> bool:
    positional = [one.arg for one in (*arguments.posonlyargs, *arguments.args)][own:]
    needed = positional[: len(positional) - len(arguments.defaults)]
    needed += [
        one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    return needed in ([], [_CLASSES])

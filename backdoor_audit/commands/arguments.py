"""Arguments that commands share: how a model and its images are to be read, where to write, what to keep."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from backdoor_audit import option_texts
from backdoor_audit.bounds import Bounds
from backdoor_audit.errors import OptionError
from backdoor_audit.files import obstacle, write_text
from backdoor_audit.options import OPTIONS, AuditOptions, Option, Role, options_with
from backdoor_audit.printable import printable
from backdoor_audit.structure import brief

_Value = TypeVar("_Value")
_BOUNDS = ("memory", "reading_time")


def declare_reading(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add the options that say how model and images are to be read, as the audit has them, also by the names of messages."""
    for key in (key for key in options_with(Role.READING) if key not in without):
        option = _option(key)
        parser.add_argument(option.alias, default=None, metavar=option.metavar, help=help_of(key))
        parser.add_argument(option.flag, dest=key, default=None, help=argparse.SUPPRESS)


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, by their key in `AuditOptions`. Raises `OptionError` for a value that cannot be read."""
    bounds = bounds_of(options)
    given = {key: _parsed(key, getattr(options, key, None), _option(key).alias) for key in options_with(Role.READING)}
    known = {key: value for key, value in given.items() if value is not None}
    return {**known, "memory": bounds.memory, "reading_time": bounds.seconds, "plugins": plugins_of(options)}


def declare_plugins(parser: argparse.ArgumentParser) -> None:
    """Add the option that leaves out what other packages bring, under the name that messages give it."""
    option = _option("plugins")
    parser.add_argument(option.flag, default=None, metavar=option.metavar, help=help_of("plugins"))


def plugins_of(options: argparse.Namespace) -> str:
    """Whether parts of other packages take part: on or off. Raises `OptionError` for another word."""
    chosen = _parsed("plugins", getattr(options, "audit_plugins", None), _option("plugins").flag)
    return str(chosen or AuditOptions().plugins)


def declare_bounds(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what reading one input may take, under the names that messages give them."""
    for key in _BOUNDS:
        parser.add_argument(_option(key).flag, default=None, metavar=_option(key).metavar, help=help_of(key))


def bounds_of(options: argparse.Namespace) -> Bounds:
    """What reading one input may take. Raises `OptionError` for a value that cannot be read."""
    given = {key: _parsed(key, getattr(options, f"audit_{key}"), _option(key).flag) for key in _BOUNDS}
    stated = Bounds()
    return Bounds(given["memory"] or stated.memory, given["reading_time"] or stated.seconds)


def declare_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, the clean images, which must be given."""
    parser.add_argument("--data", required=True, type=os.path.expanduser, metavar="SOURCE", help=help_of("data"))


def declare_out(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--out``, the file to write, which must be given; ``what`` is its help."""
    parser.add_argument("--out", required=True, type=argument(output_file), metavar="FILE", help=what)


def declare_force(parser: argparse.ArgumentParser, what: str = "replace a file that exists") -> None:
    """Add ``--force``, for `refuse_to_replace`."""
    parser.add_argument("--force", action="store_true", help=what)


def declare_seed(parser: argparse.ArgumentParser) -> None:
    """Add ``--seed``."""
    parser.add_argument(
        "--seed",
        type=argument(_option("seed").parse),
        default=0,
        metavar="N",
        help="seed of everything random (default: 0)",
    )


def declare_making(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the arguments of a command that makes a file from clean images; ``what`` is the help of ``--out``."""
    declare_data(parser)
    declare_out(parser, what)
    declare_work(parser)


def declare_work(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that reads a model and images, and works for a while."""
    declare_store(parser)
    declare_seed(parser)
    declare_force(parser)
    declare_reading(parser)
    declare_plugins(parser)


def declare_store(parser: argparse.ArgumentParser) -> None:
    """Add ``--store``, the folder of finished work."""
    parser.add_argument(
        "--store", type=argument(_folder_to_keep), metavar="DIR", help="keep finished work here, to go on after a stop"
    )


def help_of(key: str) -> str:
    """What the options table says of a key, as argparse wants it."""
    return _option(key).help.replace("%", "%%")


def refuse_to_replace(out: Path, options: argparse.Namespace, name: str = "out") -> None:
    """Raise `OptionError` if a file stands where the option points and was not to be replaced, or if there is no folder.

    What the command reads, or writes by another option, is never replaced.
    """
    if not os.path.isdir(out.parent):
        raise OptionError(f"--{name}: {out.parent} is not a folder; make it first")
    with writing(out, name):
        there = _is_there(out)
        if not os.access(out.parent, os.W_OK | os.X_OK):
            raise OSError(f"no right to write into {out.parent}")
        if os.path.exists(out) and not os.path.isfile(out):
            raise OSError("a folder, pipe, device or socket, which no file replaces")
    named = {option.key for option in OPTIONS if option.parse is option_texts.path}
    given = ((key, one) for key, all_ in vars(options).items() for one in (all_ if isinstance(all_, list) else [all_]))
    files = (
        one for key, one in given if isinstance(one, Path) or (there and key in named and isinstance(one, str) and one)
    )
    if any(file is not out and os.path.realpath(file) == os.path.realpath(out) for file in files):
        raise OptionError(f"--{name}: {out} is read, or written as well, by this command; choose another name")
    if there and not options.force:
        raise OptionError(f"--{name}: {out} exists; choose another name, or pass --force to replace it")


def _is_there(path: Path) -> bool:
    """Whether anything has this name. Raises `OSError` for a name that nothing can have."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def writing(out: Path, name: str = "out") -> Iterator[None]:
    """A block that writes a file. What the machine refuses becomes an `OptionError` that names the option."""
    try:
        yield
    except OSError as error:
        told = error.strerror or str(error)
        raise OptionError(f"--{name}: {out} cannot be written ({told}); choose another file") from None


def write_out(out: Path, text: str, name: str = "out") -> None:
    """Write a text, whole or not at all. Raises `OptionError` if it cannot be written."""
    with writing(out, name):
        write_text(out, text)


def argument(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """A type of arguments: what ``parse`` makes of the text; what it refuses, by `ValueError`, is told in a few words."""

    def read(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{brief(text)}: {error}") from None

    return read


def output_file(text: str) -> Path:
    """The path of a file to write. Raises `ValueError` for one that names none."""
    if not Path(text).name or "\0" in text:
        raise ValueError("must name a file")
    return path(text)


def _folder_to_keep(text: str) -> Path:
    """The path of a folder that is there or can be made. Raises `ValueError` for one in which nothing could be kept."""
    folder = path(text)
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if found := obstacle(folder) or ("" if os.access(there, os.W_OK | os.X_OK) else "cannot be written"):
        raise ValueError(f"{found}; give a folder that exists, or a new one in a folder")
    return folder


def path(text: str) -> Path:
    """The path, with the home folder in place of ``~`` where it begins so: shells leave it alone behind ``=``."""
    return Path(os.path.expanduser(text))


def tell(line: str) -> None:
    """Print a line at once, as it may be shown."""
    print(printable(line), flush=True)


def _option(key: str) -> Option:
    return next(option for option in OPTIONS if option.key == key)


def _parsed(key: str, text: str | None, flag: str) -> Any:
    if text is None:
        return None
    try:
        return _option(key).parse(text)
    except ValueError as error:
        raise OptionError(f"{flag}: {brief(text)} {error}; accepted: {_option(key).metavar}") from None

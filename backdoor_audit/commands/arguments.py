"""Arguments that commands share: how a model and its images are to be read, where to write, what to keep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from backdoor_audit.errors import OptionError
from backdoor_audit.options import OPTIONS, Option

_READING = ("arch", "classes", "mean", "std", "normalization", "resize", "channels", "device")


def declare_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how model and images are to be read, as the audit has them."""
    for key in _READING:
        parser.add_argument(f"--{key.replace('_', '-')}", default=None, metavar=_option(key).metavar, help=help_of(key))


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, by their key in `AuditOptions`. Raises `OptionError` for a value that cannot be read."""
    return {key: value for key in _READING if (value := _parsed(key, getattr(options, key))) is not None}


def declare_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, the clean images, which must be given."""
    parser.add_argument("--data", required=True, metavar="SOURCE", help=help_of("data"))


def declare_out(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--out``, the file to write, which must be given; ``what`` is its help."""
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=what)


def declare_force(parser: argparse.ArgumentParser, what: str = "replace a file that exists") -> None:
    """Add ``--force``, for `refuse_to_replace`."""
    parser.add_argument("--force", action="store_true", help=what)


def declare_seed(parser: argparse.ArgumentParser) -> None:
    """Add ``--seed``."""
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of everything random (default: 0)")


def declare_store(parser: argparse.ArgumentParser) -> None:
    """Add ``--store``, the folder of finished work."""
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep finished work here, to go on after a stop")


def help_of(key: str) -> str:
    """What the options table says of a key, as argparse wants it."""
    return _option(key).help.replace("%", "%%")


def refuse_to_replace(out: Path, *, force: bool, name: str = "out") -> None:
    """Raise `OptionError` if a file stands where the option points and was not to be replaced, or if there is no folder."""
    if out.exists() and not force:
        raise OptionError(f"--{name}: {out} exists; choose another name, or pass --force to replace it")
    if not out.parent.is_dir():
        raise OptionError(f"--{name}: {out.parent} is not a folder; make it first")


def _seed(text: str) -> int:
    try:
        return int(_option("seed").parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _option(key: str) -> Option:
    return next(option for option in OPTIONS if option.key == key)


def _parsed(key: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return _option(key).parse(text)
    except ValueError as error:
        raise OptionError(f"--{key}: {text!r} {error}; accepted: {_option(key).metavar}") from None

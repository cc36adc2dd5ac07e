"""The command ``backdoor-audit``: repairs models, plants backdoors, calibrates the audit. The gate is ``pytest --model``."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NoReturn, Protocol

from backdoor_audit import bounds, cores
from backdoor_audit.commands import (
    attack,
    attacks,
    audits,
    calibrate,
    compare,
    export,
    fleet,
    references,
    repair,
    report,
)
from backdoor_audit.commands.arguments import bounds_of, declare_bounds
from backdoor_audit.errors import AuditError
from backdoor_audit.printable import line_of, shortened

USAGE_ERROR, INTERRUPTED = 4, 2  # as pytest's
_LONGEST = 2000  # characters of a message about arguments


class Command(Protocol):
    """What a module of `backdoor_audit.commands` has."""

    NAME: str
    HELP: str

    def declare(self, parser: argparse.ArgumentParser) -> None:
        """Add its arguments and set the description."""

    def run(self, options: argparse.Namespace) -> int:
        """Do the work; the exit code. Raises `AuditError` for input that cannot be used."""


COMMANDS: tuple[Command, ...] = (
    calibrate,
    references,
    repair,
    audits,
    attacks,
    attack,
    report,
    export,
    compare,
    fleet,
)


class _Parser(argparse.ArgumentParser):
    """An argument parser that ends with pytest's exit code for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"{self.prog}: {shortened(line_of(message), _LONGEST)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, 4 with one line on stderr for input that cannot be used, or 2 if it was interrupted."""
    if arguments is None:  # SIGTERM ends it as Ctrl-C does, so that drafts and scratch folders go
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        os._exit = partial(_no_end, os.getpid(), os._exit)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        with suppress(OSError):
            told = "interrupted; no file is half-written, and what --store keeps is not done again"
            print(f"backdoor-audit: {told}", file=sys.stderr, flush=True)
        return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    if arguments is None and sys.argv[1:2] != [fleet.NAME]:  # this process is ours; gates of a fleet share on their own
        cores.wait_asleep(os.environ)
        cores.share(1, os.environ)
    arguments, passed_on = _parted(sys.argv[1:] if arguments is None else arguments)
    options = _parser(arguments).parse_args(arguments, argparse.Namespace(passed_on=passed_on))
    command = next(command for command in COMMANDS if options.command == command.NAME)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without our letters is no reason to end
    try:
        with bounds.allowing(bounds_of(options)):
            return command.run(options)
    except AuditError as error:
        told = f"backdoor-audit: {error}"
    except SystemExit as error:  # of the model's own code, say; 0 would tell that the work was done
        told = line_of(
            f"backdoor-audit: other code called for the end of the process ({error.code}); the work is not done"
        )
    except OSError as error:
        told = line_of(f"backdoor-audit: {f'{error.filename}: {error.strerror}' if error.filename else error}")
    with suppress(OSError):  # nobody reads it; the exit code still tells wrong usage from an answer that is bad
        print(told, file=sys.stderr, flush=True)
    return USAGE_ERROR


def _no_end(ours: int, end: Callable[[int], NoReturn], code: int) -> NoReturn:
    """In place of `os._exit`: the process of a command, in which code of models runs, ends by an exception that is told."""
    if os.getpid() == ours:
        raise SystemExit(f"os._exit({code})")
    end(code)


def _parted(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The arguments of a command, and what `fleet` passes on to the gate: all behind ``--``, where others have file names."""
    if list(arguments[:1]) != [fleet.NAME] or "--" not in arguments:
        return arguments, ()
    place = list(arguments).index("--")
    return arguments[:place], arguments[place + 1 :]


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands; only one that is named has its arguments, as declaring them may take an import of torch."""
    parser = _Parser(prog="backdoor-audit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for command in COMMANDS:
        added = commands.add_parser(command.NAME, help=command.HELP)
        declare_bounds(added)
        if command.NAME in arguments:
            command.declare(added)
    return parser


if __name__ == "__main__":
    sys.exit(main())

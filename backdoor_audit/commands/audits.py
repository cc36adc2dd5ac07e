"""``backdoor-audit audits``: the shipped questions with their limits, and a copy of them to change."""

from __future__ import annotations

import argparse
import shutil

from backdoor_audit.commands.arguments import path
from backdoor_audit.errors import OptionError
from backdoor_audit.printable import printable

NAME = "audits"
HELP = "list the shipped audits with their limits, or copy them to a folder of your own"


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = (
        "List what a run asks, with the numbers that answers are judged by. With --out the files are copied: change a number, "
        "leave a file out, add one, and pass the folder as --audit-suite."
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="copy the audits to this folder, which must not exist")


def run(options: argparse.Namespace) -> int:
    """Print every question with its limits, or copy the files. Raises `OptionError` for a folder that cannot be made."""
    from backdoor_audit.questions.suite import shipped

    if options.out is None:
        for question in shipped().questions:
            limits = ", ".join(f"{name} {value:g}" for name, value in question.limits.items())
            print(f"{question.name}\n    {question.words.asks}{f' ({limits})' if limits else ''}")
        return 0
    try:
        options.out.mkdir()
        for file in dict.fromkeys(entry.file for entry in shipped().entries):
            shutil.copy(file, options.out / file.name)
    except FileExistsError:
        raise OptionError(f"--out: {options.out} exists; choose another name") from None
    except (OSError, ValueError) as error:
        raise OptionError(
            f"--out: {options.out} cannot be made ({getattr(error, 'strerror', None) or error})"
        ) from None
    print(printable(f"written: {options.out}; ask it with pytest --model=FILE --audit-suite={options.out}"))
    return 0

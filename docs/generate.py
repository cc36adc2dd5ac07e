"""Writes the pages that are made from the code: ``python docs/generate.py``. ``tests/project`` compares them with it."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

from backdoor_audit.cli import COMMANDS, Command
from backdoor_audit.commands.arguments import declare_bounds
from backdoor_audit.evidence import Limits
from backdoor_audit.options import OPTIONS, AuditOptions, Option
from backdoor_audit.questions.suite import shipped

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by `python docs/generate.py` from the code; change it there. -->"

OPTIONS_INTRODUCTION = """\
Every option has a long name that no other plugin uses (`--audit-model`) and a short one (`--model`), which is left
out where your project or another plugin has taken it. The same keys, with underscores, go into `pyproject.toml`; the
command line wins, unknown keys are errors:

```toml
[tool.backdoor_audit]
data = "clean-images/"
arch = "mypackage.models:build"
min_accuracy = 0.9
limits = { clean_accuracy_drop = 0.05 }
```

Paths in the table are relative to the folder of `pyproject.toml`, those on the command line to the folder you are in;
`~` at their beginning is your home folder.
All of pytest's own options work beside them: `-k`, `--lf`, `-n 2`, `--collect-only`, `--junitxml` and the rest.
`pytest --help` lists the options under "backdoor audit".

A model on the command line runs the audits alone, or, with a path, the tests at that path (they can use the fixtures
`classifier`, `clean_set` and `detection`); add the word `audit` for both. `model = "..."` in the table adds the audits
to your own tests. `--audit` asks for the audits where the model is not a file: it runs them on the module that the
project's own fixture `audited_model` returns."""

LIMITS_INTRODUCTION = """\
A finding is judged by a number beside its limit. `--audit-limit NAME=VALUE` sets one and may be repeated; so does
`limits` in `[tool.backdoor_audit]`. Rates are fractions."""

COMMANDS_INTRODUCTION = """\
The gate is `pytest --model=PATH`. `backdoor-audit` does what is beside it. It ends with 0, with 1 if a command did its
work and the answer is bad (`repair`: nothing held; `compare`: something is worse; `fleet`: a model did not pass), and
with 2 if it was interrupted (Ctrl-C, SIGTERM; `fleet`: 1), and with 4 for wrong usage."""

SHARED_INTRODUCTION = """\
These mean the same in every command that has them. The tables below name them, and leave out what they are."""

SHARED_TITLE = "Arguments of several commands"
SHARED_ANCHOR = "arguments-of-several-commands"
SEVERAL = 3
"""Commands that have an argument with the same words; from so many on it is told once."""


def options_page() -> str:
    """All options of the audit, from the table that the command line and ``pyproject.toml`` are read by."""
    rows = [(f"`{option.flag}`, `{option.alias}`", f"`{option.metavar}`", _help(option)) for option in OPTIONS]
    rows.append(("`--audit-limit`", "`NAME=VALUE`", "set a [limit](limits.md); may be repeated"))
    rows.append(("`--audit`", "", "run the audits on the module that the fixture `audited_model` returns"))
    return _page("Options", OPTIONS_INTRODUCTION, _table(("option", "value", "what it does"), rows))


def limits_page() -> str:
    """All limits, with the comments that stand beside them in the shipped audits."""
    rows: list[tuple[str, ...]] = []
    for entry in shipped().entries:
        for line in entry.file.read_text().splitlines():
            if found := re.fullmatch(r" +(\w+)=([\d.]+),  # (.*)", line):
                rows.append((f"`{found[1]}`", found[2], f"`{entry.file.name}`", found[3]))
            elif rows and (found := re.fullmatch(r" +# (.*)", line)):
                rows[-1] = (*rows[-1][:-1], f"{rows[-1][-1]} {found[1]}")
    assert {row[0].strip("`") for row in rows} == {entry.name for entry in fields(Limits)}
    return _page("Limits", LIMITS_INTRODUCTION, _table(("limit", "value", "in", "where it comes from"), rows))


def commands_page() -> str:
    """All commands of ``backdoor-audit``, with their arguments."""
    parsers = {command: parser_of(command) for command in COMMANDS}
    rows = {command: _arguments(parser) for command, parser in parsers.items()}
    counts = Counter(row for each in rows.values() for row in each)
    shared = {row: count for row, count in counts.items() if count >= SEVERAL}
    parts = [COMMANDS_INTRODUCTION]
    parts.append(
        _table(
            ("command", "what it does"), [(f"[`{entry.NAME}`](#{_anchor(entry)})", entry.HELP) for entry in COMMANDS]
        )
    )
    for command, parser in parsers.items():
        said = parser.description or f"{command.HELP[0].upper()}{command.HELP[1:]}."
        own = [row for row in rows[command] if row not in shared]
        parts += [f"## `backdoor-audit {command.NAME}`", said]
        parts += [_table(("argument", "what it is"), own)] if own else []
        others = ", ".join(
            name.replace(", needed", " (needed)") for name, what in rows[command] if (name, what) in shared
        )
        parts.append(f"And, [as other commands](#{SHARED_ANCHOR}): {others}.")
    parts += [f"## {SHARED_TITLE}", SHARED_INTRODUCTION, _table(("argument", "what it is"), list(shared))]
    return _page("Commands", *parts)


PAGES: dict[str, Callable[[], str]] = {
    "options.md": options_page,
    "limits.md": limits_page,
    "commands.md": commands_page,
}


def _arguments(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Every argument with what it is, as the page shows them."""
    return [
        (_names(action), (action.help or "") % vars(action))
        for action in parser._actions
        if action.dest != "help" and action.help != argparse.SUPPRESS
    ]


def _anchor(command: Command) -> str:
    return f"backdoor-audit-{command.NAME}"


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The parser of one command, as ``backdoor-audit`` has it."""
    parser = argparse.ArgumentParser(prog=f"backdoor-audit {command.NAME}")
    declare_bounds(parser)
    command.declare(parser)
    return parser


def _help(option: Option) -> str:
    default = getattr(AuditOptions(), option.key)
    told = "default" in option.help or default in ("", (), 0, 0.0)
    return option.help if told else f"{option.help} (default: {default})"


def _names(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    value = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return f"`{value}`"
    shown = value if action.nargs != 0 else ""
    needed = ", needed" if action.required else ""
    return f"`{f'{action.option_strings[-1]} {shown}'.strip()}`{needed}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", NOTE, *parts)) + "\n"


if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")

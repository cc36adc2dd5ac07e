"""Options of a run from where they are given: the command line, ``[tool.backdoor_audit]``, the arguments of a Python call."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backdoor_audit import option_texts as read
from backdoor_audit.errors import OptionError
from backdoor_audit.files import UnreadableError, read_toml
from backdoor_audit.options import OPTIONS, TABLE, AuditOptions, Option, Role
from backdoor_audit.structure import brief

_ALIKE = re.compile(r"(?:tool\.)?backdoor[-_]?audits?", re.IGNORECASE)
"""What somebody may have called the table."""

_MOST_TOLD = 20  # unknown keys


def read_table(folder: Path) -> dict[str, Any]:
    """The table ``[tool.backdoor_audit]`` of ``pyproject.toml`` in a folder; empty if there is none.

    Raises `OptionError` if the file cannot be read, is not TOML, or has something else in that place.
    """
    file = folder / "pyproject.toml"
    if not os.path.lexists(file):
        return {}
    try:
        table: dict[str, Any] = read_toml(file)
    except UnreadableError as error:
        raise OptionError(f"{file}: cannot be read ({error})") from None
    except (ValueError, RecursionError, OverflowError) as error:  # numbers, dates and depths that Python does not take
        raise OptionError(f"{file}: not valid TOML ({error})") from None
    tools = table.get("tool")
    within = tools if isinstance(tools, dict) else {}
    for misspelt in (*table, *(f"tool.{name}" for name in within)):
        if misspelt != TABLE and _ALIKE.fullmatch(misspelt):
            raise OptionError(f"{file}: [{misspelt}] is not read; write [{TABLE}]")
    place = ""
    for name in TABLE.split("."):
        table, place = table.get(name, {}), f"{place}.{name}".removeprefix(".")
        if not isinstance(table, dict):
            raise OptionError(f"{file}: {place} is {brief(table)}; a table is accepted")
    return table


def build_options(
    command_line: Mapping[str, str], limits: Mapping[str, str], table: Mapping[str, Any], table_folder: Path
) -> AuditOptions:
    """Options from the command line (raw texts) and the project's table; the command line wins.

    Paths in the table are relative to ``table_folder``. All problems are named in one `OptionError`.
    """
    problems, values = unknown_keys(table), dict[str, Any]()
    for option in OPTIONS:
        given = _given(option, command_line, table)
        if given is None:
            continue
        source, value = given
        try:
            text = _text(value, option)
            listed = option.key == "class_names" and "," in text
            in_table = Role.PATH in option.role and option.key not in command_line and not listed
            values[option.key] = option.parse(_beside(table_folder, text) if in_table and text else text)
        except ValueError as error:
            problems.append(f"{source}: {brief(value)} {_told(option, error)}")
    chosen = table.get("limits", {})
    if not isinstance(chosen, dict):
        problems.append(f"[{TABLE}] limits: a table of numbers is accepted, got {brief(chosen)}")
        chosen = {}
    values["limits"] = {**chosen, **_limit_values(limits)}
    return _agreed(values, problems, {option.key: option.flag for option in OPTIONS})


def unknown_keys(table: Mapping[str, Any]) -> list[str]:
    """What is said of each key of the project's table that there is not."""
    return [f"[{TABLE}] has an unknown key {unknown}{hint}" for unknown, hint in _unknown(table)]


def options_of(arguments: Mapping[str, Any]) -> AuditOptions:
    """Options from the arguments of a Python call: values such as TOML has, or texts as on the command line.

    None, and what is the default anyway, mean: not given. All problems are named in one `OptionError`.
    """
    problems = [f"audit() has no option {unknown}{hint}" for unknown, hint in _unknown(arguments)]
    usual, values = AuditOptions(), dict[str, Any]()
    for option in OPTIONS:
        value = arguments.get(option.key)
        if value is None or _is_usual(value, getattr(usual, option.key)):
            continue
        try:
            if Role.PATH in option.role and not isinstance(value, str):
                raise ValueError("must be a path, as a text or a pathlib.Path")
            values[option.key] = option.parse(_text(value, option))
        except ValueError as error:
            problems.append(f"{option.argument}: {brief(value)} {_told(option, error)}")
    chosen = arguments.get("limits")
    if not isinstance(chosen, (dict, type(None))):
        problems.append(f"audit(limits=...): a mapping of names to numbers is accepted, got {brief(chosen)}")
        chosen = {}
    values["limits"] = chosen or {}
    return _agreed(values, problems, {option.key: option.argument for option in OPTIONS})


def _unknown(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names of no option, some at most, each with what may have been meant."""
    keys = [*(option.key for option in OPTIONS), "limits"]
    found = []
    for unknown in sorted(set(given) - set(keys))[:_MOST_TOLD]:
        close = difflib.get_close_matches(unknown[: read.LONGEST], keys, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known keys are {', '.join(keys)}"
        found.append((brief(unknown), hint))
    return found


_SUCH = {"TIME": ", such as 90s, 10m or 1h30m", "SIZE": ", such as 500M or 8G"}
"""What is put behind the name of a value, where that alone does not tell how it is written."""


def _told(option: Option, error: ValueError) -> str:
    """What a parser says about a value, or else what is accepted."""
    return (
        str(error)
        if str(error).startswith("must")
        else f"cannot be read; accepted: {option.metavar}{_SUCH.get(option.metavar, '')}"
    )


def _is_usual(value: object, usual: object) -> bool:
    """Whether a plain value is the default; of other values nobody knows what ``==`` does."""
    empty = usual == () and isinstance(value, (list, tuple)) and not value
    alike = isinstance(value, (str, int, float)) and isinstance(value, bool) == isinstance(usual, bool)
    return empty or (alike and value == usual)


def _agreed(values: Mapping[str, Any], problems: list[str], named: Mapping[str, str]) -> AuditOptions:
    """The options with these values. Raises `OptionError` for all problems at once, or if values contradict each other."""
    problems += filter(None, itertools.starmap(limit_problem, values["limits"].items()))
    if problems:
        raise OptionError("; ".join(problems))
    options = AuditOptions(**values)
    if options.normalization and (options.mean or options.std):
        raise OptionError(f"{named['normalization']} and {named['mean']}/{named['std']} both given; choose one")
    if bool(options.mean) != bool(options.std):
        raise OptionError(f"{named['mean']} and {named['std']} belong together; give both or neither")
    return options


def _limit_values(pairs: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, text in pairs.items():
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = text
    return values


def limit_problem(name: str, value: object) -> str:
    """What is wrong with the value of a limit, whatever it is called, or an empty string; which there are, the suite knows."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        return f"limit {read.named(name)} must be a number of at least 0, got {brief(value)}"
    return ""


def _text(value: Any, option: Option) -> str:
    """A TOML value as the text that the command line would carry. Raises `ValueError` for a table, a date or a nested list."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return ("x" if option.key == "resize" else ",").join(map(str, value))
    raise ValueError("neither a text nor a number nor a list of numbers")


def _given(option: Option, command_line: Mapping[str, str], table: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Where an option was given, and its value; None if it was not."""
    if option.key in command_line:
        return option.flag, str(command_line[option.key])
    return (f"[{TABLE}] {option.key}", table[option.key]) if option.key in table else None


def _beside(folder: Path, text: str) -> str:
    return text if text.startswith("torchvision:") else str(folder / os.path.expanduser(text))

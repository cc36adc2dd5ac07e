"""What a command line, with the project's table, asks of the audit: the options of a run, or none, or one clear refusal."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.errors import OptionError
from backdoor_audit.option_sources import build_options, read_table, unknown_keys
from backdoor_audit.option_texts import expanded
from backdoor_audit.options import OPTIONS, TABLE, AuditOptions
from backdoor_audit.plugin.behind_a_space import refuse_root_of_values
from backdoor_audit.plugin.given import given, names_paths, own_names, requested, typed, typed_names
from backdoor_audit.structure import brief

_LISTS = {
    "collectonly": ("--collect-only", "--co", "--collectonly"),
    "help": ("--help", "-h"),
    "version": ("--version", "-V"),
    "markers": ("--markers",),
    "showfixtures": ("--fixtures", "--funcargs"),
    "show_fixtures_per_test": ("--fixtures-per-test",),
    "cacheshow": ("--cache-show",),
}
"""Options under which pytest lists or tells something and runs nothing, and how they are called."""

_NO_RUN = tuple(option for option in _LISTS if option != "collectonly")
"""Those under which it does not collect either."""

_SHORT = re.compile("-[hlqsvxV]*[hV][hlqsvxV]*")  # -qh: letters that take no value

ENDING, SESSION_NAME, CLOSING = "backdoor_audit.ending", "backdoor_audit.session", "backdoor_audit.closing"
"""Plugins that a run registers; without one of them there is no audit."""

_NAMED = re.compile("backdoor[-_]?audit", re.IGNORECASE)


def asked_for(config: pytest.Config) -> AuditOptions | None:
    """The options of the audit that this run is, None if it is none. Raises `OptionError`."""
    if any(getattr(config.option, name, False) for name in _NO_RUN):
        return None
    wanted = requested(config)
    _refuse_several_models(config)
    refuse_root_of_values(config)
    table = _table(config.rootpath, requested=wanted)
    if not wanted and "model" not in table:
        _refuse_options_without_model(config)
        if unknown := unknown_keys(table):  # the model itself may stand there by another name
            raise OptionError("; ".join(unknown))
        _refuse_another_root(config)
        return None
    return build_options(given(config), _limit_pairs(config.option.audit_limit), table, config.rootpath)


def _refuse_options_without_model(config: pytest.Config) -> None:
    """Raise `OptionError` if the caller typed an option of the audit but no model that reaches it."""
    keys, names = given(config), typed_names(config)
    reached = [
        name for option in OPTIONS if option.key in keys for name in (option.flag, option.alias) if name in names
    ]
    if reached:
        raise OptionError(
            f"{reached[0]} was given but no model reached the audit; pass --audit-model=PATH (if you gave --model, it belongs to "
            "another plugin or conftest here)"
        )


def _started_in(config: pytest.Config) -> list[Path]:
    """Where pytest was started and found its file, and what lies between there and the root of the run, without that."""
    begun, root = config.invocation_params.dir, config.rootpath
    between = (folder for folder in begun.parents if root in folder.parents)
    found = {begun, *between, *([config.inipath.parent] if config.inipath else [])}
    return sorted(found - {root})


def _table_asks(config: pytest.Config) -> bool:
    """Whether a model stands in the table of the root, or of where pytest was started."""
    return any("model" in _table(folder, requested=False) for folder in (config.rootpath, *_started_in(config)))


def _refuse_another_root(config: pytest.Config) -> None:
    """Raise `OptionError` if a table that asks for an audit lies where pytest was started, and its root is elsewhere.

    A caller that names paths asks for these alone.
    """
    if names_paths(config):
        return
    for folder in _started_in(config):
        if "model" in _table(folder, requested=False):
            raise OptionError(
                f"{folder / 'pyproject.toml'}: the model in [{TABLE}] would not be audited, as the root of this run is "
                f"{config.rootpath}; leave out --rootdir and -c, add [tool.pytest.ini_options] there, or pass --audit-model=PATH"
            )


def _refuse_several_models(config: pytest.Config) -> None:
    """Raise `OptionError` if the caller typed two models: only the last would be audited."""
    names, words = {"--audit-model", *({"--model"} & own_names(config))}, expanded(typed(config))
    models = [
        following if argument in names else argument.partition("=")[2]
        for argument, following in pairwise((*words, ""))
        if argument.partition("=")[0] in names
    ]
    if len(set(models)) > 1:
        raise OptionError(
            f"--audit-model: {', '.join(map(brief, models))} were given; a run audits one model, `backdoor-audit fleet` several"
        )


def refuse_lists_of_others(config: pytest.Config) -> None:
    """Raise `OptionError` if an audit is asked for, and what nobody typed makes pytest list or tell something and end in 0."""
    found = [names for option, names in _LISTS.items() if getattr(config.option, option, False)]
    words = [argument.partition("=")[0] for argument in expanded(typed(config))]
    if not found or any(name in words for names in found for name in names) or any(map(_SHORT.fullmatch, words)):
        return
    ours = ("--audit", *({"--model"} & own_names(config)))
    asked = any(name.startswith(ours) for name in words)  # --help ends the reading of options where it stands
    if asked or requested(config) or (_table_asks(config) and not names_paths(config)):
        raise OptionError(
            f"{found[0][0]} comes from PYTEST_ADDOPTS or from addopts in a file of the project, and nothing would be audited; "
            "take it out there, or type it"
        )


def shadowed(config: pytest.Config) -> str:
    """That a typed ``--model`` is not ours, where the project has a table for the audit; an empty string otherwise."""
    theirs = "--model" in typed_names(config) - own_names(config)
    if not theirs or requested(config) or not _table(config.rootpath, requested=False):
        return ""
    return "backdoor_audit: --model belongs to another plugin or conftest here; for an audit pass --audit-model=PATH"


def refuse_blocked(config: pytest.Config) -> None:
    """Raise `OptionError` if a part of the plugin was switched off by itself, or cannot work beside another."""
    for name in (ENDING, SESSION_NAME, CLOSING):
        if config.pluginmanager.is_blocked(name):
            raise OptionError(f"-p no:{name} takes a part of the audit away; leave it out")
    if getattr(config.option, "forked", False):
        raise OptionError(
            "--forked gives every item a process of its own, in which nothing that another has found is there; leave it out (for "
            "an audit, if it stands in addopts: -p no:pytest_forked)"
        )


def may_audit(config: pytest.Config, arguments: Sequence[str]) -> bool:
    """Whether an audit is asked for, as far as can be told before all options are known.

    ``arguments`` are all that pytest has: what was typed, and what the project's files and the environment add.
    """
    try:
        if any(argument.startswith(("--model", "--audit")) for argument in expanded(arguments)):
            return True
        return _table_asks(config)
    except OptionError:
        return True


def _table(folder: Path, *, requested: bool) -> dict[str, Any]:
    """The project's table. Raises `OptionError`, but for a broken file of a project that does not use us: not our business."""
    try:
        return read_table(folder)
    except OptionError:
        if requested or _mentions_audit(folder / "pyproject.toml"):
            raise
        return {}


def _mentions_audit(file: Path) -> bool:
    try:
        return os.path.isfile(file) and bool(_NAMED.search(file.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return False


def _limit_pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"--audit-limit: {brief(text)} cannot be read; accepted: NAME=VALUE")
        pairs[name.strip()] = value
    return pairs

"""What a command line, with the project's table, asks of the audit: the options of a run, or none, or one clear refusal."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from _pytest.config.argparsing import FILE_OR_DIR  # pytest has no public name for what is no option
from _pytest.config.findpaths import determine_setup  # nor for how it finds its root and its file

from backdoor_audit.errors import OptionError
from backdoor_audit.item import AUDIT
from backdoor_audit.option_sources import build_options, read_table, unknown_keys
from backdoor_audit.option_texts import expanded
from backdoor_audit.options import OPTIONS, TABLE, AuditOptions
from backdoor_audit.structure import brief

_NO_RUN = ("help", "version", "markers", "showfixtures", "show_fixtures_per_test", "cacheshow")
"""Options under which pytest tells something and runs nothing."""

_LISTS = {
    "collectonly": ("--collect-only", "--co", "--collectonly"),
    "help": ("--help", "-h"),
    "version": ("--version", "-V"),
    "markers": ("--markers",),
    "showfixtures": ("--fixtures", "--funcargs"),
    "show_fixtures_per_test": ("--fixtures-per-test",),
    "cacheshow": ("--cache-show",),
}
"""How these are called, and what lists items and runs none."""

_SHORT = re.compile("-[hlqsvxV]*[hV][hlqsvxV]*")  # -qh: letters that take no value

ENDING, SESSION_NAME, CLOSING = "backdoor_audit.ending", "backdoor_audit.session", "backdoor_audit.closing"
"""Plugins that a run registers; without one of them there is no audit."""

OWN = pytest.StashKey[set[str]]()
"""The short names that no other plugin or conftest had taken."""

_APART = pytest.StashKey[list[tuple[str, str]]]()
"""Options of ours whose value stands behind a space and is a path that is there, with it."""

_NAMED = re.compile("backdoor[-_]?audit", re.IGNORECASE)


def dest(key: str) -> str:
    """Under what name pytest keeps an option."""
    return f"audit_{key}"


def asked_for(config: pytest.Config) -> AuditOptions | None:
    """The options of the audit that this run is, None if it is none. Raises `OptionError`."""
    if any(getattr(config.option, name, False) for name in _NO_RUN):
        return None
    given = _given(config)
    wanted = requested(config)
    _refuse_several_models(config)
    _refuse_root_of_values(config)
    table = _table(config.rootpath, requested=wanted)
    if not wanted and "model" not in table:
        _refuse_options_without_model(config)
        if unknown := unknown_keys(table):  # the model itself may stand there by another name
            raise OptionError("; ".join(unknown))
        _refuse_another_root(config)
        return None
    return build_options(given, _limit_pairs(config.option.audit_limit), table, config.rootpath)


def take_back_values(config: pytest.Config, arguments: Sequence[str], taken: Collection[str]) -> None:
    """Keep pytest from importing the conftest.py beside a model that was given as ``--model PATH``, with a space.

    It does not know the short names yet, and takes what stands behind one for a path to tests. ``arguments`` are all that it
    has, ``taken`` the names of options that it knows.
    """
    names = {option.flag for option in OPTIONS} | {option.alias for option in OPTIONS if option.alias not in taken}
    try:
        words = expanded(arguments)
    except OptionError:  # pytest tells
        return
    apart = [(name, value) for name, value in pairwise(words) if name in names and os.path.exists(value)]
    config.stash[_APART] = apart
    paths: list[str] = getattr(config.known_args_namespace, FILE_OR_DIR)
    for name, value in apart:
        if name not in taken and value in paths:
            paths.remove(value)


def _refuse_root_of_values(config: pytest.Config) -> None:
    """Raise `OptionError` if pytest took the folder of a model or of images for the project, and its settings for the user's.

    Before it knows any plugin, it takes for a path to tests what stands behind the name of an option and a space.
    """
    own: set[str] = config.stash.get(OWN, set[str]())
    apart = [
        (name, value) for name, value in config.stash.get(_APART, []) if name in own or name.startswith("--audit-")
    ]
    if not apart:
        return
    paths: list[str] = getattr(config.option, FILE_OR_DIR)
    taken, meant = (_settings(config, given) for given in ([*paths, *(value for _, value in apart)], paths))
    if taken != meant != config.inipath:  # those of addopts come too late to do harm
        name, value = apart[0]
        raise OptionError(
            f"{name} {brief(value)}: pytest takes what stands behind the space for a path to tests, and its settings from "
            f"{taken or 'no file'} in place of {meant or 'none'}; write {name}={brief(value)}, and all options so"
        )


def _settings(config: pytest.Config, paths: Sequence[str]) -> Path | None:
    """The file with pytest's settings, and ours, that pytest finds for these paths."""
    known = config.known_args_namespace
    given = {
        "inifile": known.inifilename,
        "override_ini": known.override_ini,
        "args": paths,
        "rootdir_cmd_arg": known.rootdir or None,
        "invocation_dir": config.invocation_params.dir,
    }
    wanted = inspect.signature(determine_setup).parameters  # which differ between versions of pytest
    return determine_setup(**{name: value for name, value in given.items() if name in wanted})[1]


def _typed(config: pytest.Config) -> tuple[str, ...]:
    """What the caller typed: without what the project's files and the environment add to every run."""
    return tuple(map(str, config.invocation_params.args))


def names_paths(config: pytest.Config) -> bool:
    """Whether the caller typed paths or items; those of ``addopts`` select nothing where an audit is asked for."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return False
    return any(path.strip() for path in _typed_paths(config))


def _typed_paths(config: pytest.Config) -> Sequence[str]:
    """What of the typed words is neither an option nor the value of one, as pytest itself reads them."""
    typed = _typed(config)
    try:
        known, others = config._parser.parse_known_and_unknown_args(typed)
        return [*map(str, getattr(known, FILE_OR_DIR)), *(word for word in others if not word.startswith("-"))]
    except Exception:  # --help ends the reading where it stands
        return [argument for argument in config.args if argument in typed]


def collects(config: pytest.Config) -> bool:
    """Whether the shipped items are in this run: where no paths were typed, or items of the audit are among them."""
    return not names_paths(config) or bool(split_arguments(config)[0])


def _refuse_options_without_model(config: pytest.Config) -> None:
    """Raise `OptionError` if the caller typed an option of the audit but no model that reaches it."""
    given, typed = _given(config), {argument.partition("=")[0] for argument in _typed(config)}
    reached = [
        name for option in OPTIONS if option.key in given for name in (option.flag, option.alias) if name in typed
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
    own: set[str] = config.stash.get(OWN, set[str]())
    names, typed = {"--audit-model", *({"--model"} & own)}, expanded(_typed(config))
    models = [
        following if argument in names else argument.partition("=")[2]
        for argument, following in pairwise((*typed, ""))
        if argument.partition("=")[0] in names
    ]
    if len(set(models)) > 1:
        raise OptionError(
            f"--audit-model: {', '.join(map(brief, models))} were given; a run audits one model, `backdoor-audit fleet` several"
        )


def refuse_lists_of_others(config: pytest.Config) -> None:
    """Raise `OptionError` if an audit is asked for, and what nobody typed makes pytest list or tell something and end in 0."""
    found = [names for option, names in _LISTS.items() if getattr(config.option, option, False)]
    typed = [argument.partition("=")[0] for argument in expanded(_typed(config))]
    if not found or any(name in typed for names in found for name in names) or any(map(_SHORT.fullmatch, typed)):
        return
    own: set[str] = config.stash.get(OWN, set[str]())
    ours = ("--audit", *({"--model"} & own))
    asked = any(name.startswith(ours) for name in typed)  # --help ends the reading of options where it stands
    if asked or requested(config) or (_table_asks(config) and not names_paths(config)):
        raise OptionError(
            f"{found[0][0]} comes from PYTEST_ADDOPTS or from addopts in a file of the project, and nothing would be audited; "
            "take it out there, or type it"
        )


def shadowed(config: pytest.Config) -> str:
    """That a typed ``--model`` is not ours, where the project has a table for the audit; an empty string otherwise."""
    typed = any(argument.partition("=")[0] == "--model" for argument in _typed(config))
    own: set[str] = config.stash.get(OWN, set[str]())
    if not typed or "--model" in own or requested(config) or not _table(config.rootpath, requested=False):
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


def _given(config: pytest.Config) -> dict[str, str]:
    """What the command line says."""
    values = {option.key: getattr(config.option, dest(option.key), None) for option in OPTIONS}
    return {key: value for key, value in values.items() if value is not None}


def requested(config: pytest.Config) -> bool:
    """Whether the command line asks for an audit; a model in pyproject.toml may do so as well."""
    return "model" in _given(config) or bool(config.option.audit_requested)


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


def split_arguments(config: pytest.Config) -> tuple[list[str], list[str]]:
    """Arguments that select shipped audits (`audit`, `audit::...`), and all others."""
    selected = [
        argument
        for argument in config.args
        if argument.startswith(f"{AUDIT}::")
        or (argument == AUDIT and (requested(config) or not os.path.exists(argument)))
    ]
    return selected, [argument for argument in config.args if argument not in selected]

"""The form ``--model PATH``, with a space: pytest takes what stands behind it for a path to tests before it knows any plugin."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from _pytest.config.argparsing import FILE_OR_DIR  # pytest has no public name for what is no option
from _pytest.config.findpaths import determine_setup  # nor for how it finds its root and its file

from backdoor_audit.errors import OptionError
from backdoor_audit.option_texts import expanded
from backdoor_audit.options import OPTIONS
from backdoor_audit.plugin.given import own_names
from backdoor_audit.structure import brief

_APART = pytest.StashKey[list[tuple[str, str]]]()
"""Options of ours whose value stands behind a space and is a path that is there, with it."""


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


def refuse_root_of_values(config: pytest.Config) -> None:
    """Raise `OptionError` if pytest took the folder of a model or of images for the project, and its settings for the user's.

    Before it knows any plugin, it takes for a path to tests what stands behind the name of an option and a space.
    """
    own = own_names(config)
    apart = [
        (name, value) for name, value in config.stash.get(_APART, []) if name in own or name.startswith("--audit-")
    ]
    if not apart:
        return
    paths: list[str] = getattr(config.option, FILE_OR_DIR)
    taken, meant = (_settings(config, words) for words in ([*paths, *(value for _, value in apart)], paths))
    if taken != meant != config.inipath:  # those of addopts come too late to do harm
        name, value = apart[0]
        raise OptionError(
            f"{name} {brief(value)}: pytest takes what stands behind the space for a path to tests, and its settings from "
            f"{taken or 'no file'} in place of {meant or 'none'}; write {name}={brief(value)}, and all options so"
        )


def _settings(config: pytest.Config, paths: Sequence[str]) -> Path | None:
    """The file with pytest's settings, and ours, that pytest finds for these paths."""
    known = config.known_args_namespace
    all_known = {
        "inifile": known.inifilename,
        "override_ini": known.override_ini,
        "args": paths,
        "rootdir_cmd_arg": known.rootdir or None,
        "invocation_dir": config.invocation_params.dir,
    }
    wanted = inspect.signature(determine_setup).parameters  # which differ between versions of pytest
    return determine_setup(**{name: value for name, value in all_known.items() if name in wanted})[1]

"""What the command line gives, as pytest keeps it: options, paths and names of items."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from _pytest.config.argparsing import FILE_OR_DIR  # pytest has no public name for what is no option

from backdoor_audit.item import AUDIT
from backdoor_audit.options import OPTIONS

OWN = pytest.StashKey[set[str]]()
"""The short names that no other plugin or conftest had taken."""


def own_names(config: pytest.Config) -> set[str]:
    """The short names that are ours here."""
    return config.stash.get(OWN, set[str]())


def dest(key: str) -> str:
    """Under what name pytest keeps an option."""
    return f"audit_{key}"


def typed(config: pytest.Config) -> tuple[str, ...]:
    """What the caller typed: without what the project's files and the environment add to every run."""
    return tuple(map(str, config.invocation_params.args))


def typed_names(config: pytest.Config) -> set[str]:
    """The names of the options that the caller typed."""
    return {argument.partition("=")[0] for argument in typed(config)}


def names_paths(config: pytest.Config) -> bool:
    """Whether the caller typed paths or items; those of ``addopts`` select nothing where an audit is asked for."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return False
    return any(path.strip() for path in _typed_paths(config))


def _typed_paths(config: pytest.Config) -> Sequence[str]:
    """What of the typed words is neither an option nor the value of one, as pytest itself reads them."""
    words = typed(config)
    try:
        known, others = config._parser.parse_known_and_unknown_args(words)
        return [*map(str, getattr(known, FILE_OR_DIR)), *(word for word in others if not word.startswith("-"))]
    except Exception:  # --help ends the reading where it stands
        return [argument for argument in config.args if argument in words]


def collects(config: pytest.Config) -> bool:
    """Whether the shipped items are in this run: where no paths were typed, or items of the audit are among them."""
    return not names_paths(config) or bool(split_arguments(config)[0])


def given(config: pytest.Config) -> dict[str, str]:
    """What the command line says."""
    values = {option.key: getattr(config.option, dest(option.key), None) for option in OPTIONS}
    return {key: value for key, value in values.items() if value is not None}


def requested(config: pytest.Config) -> bool:
    """Whether the command line asks for an audit; a model in pyproject.toml may do so as well."""
    return "model" in given(config) or bool(config.option.audit_requested)


def split_arguments(config: pytest.Config) -> tuple[list[str], list[str]]:
    """Arguments that select shipped audits (`audit`, `audit::...`), and all others."""
    selected = [
        argument
        for argument in config.args
        if argument.startswith(f"{AUDIT}::")
        or (argument == AUDIT and (requested(config) or not os.path.exists(argument)))
    ]
    return selected, [argument for argument in config.args if argument not in selected]

"""The pytest plugin: options, fixtures, the shipped audits as items, workers, and the record at the end.

Only this package imports pytest. torch is imported where it is used, so that ``pytest --help`` and runs without an audit
do not pay for it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.errors import OptionError
from backdoor_audit.item import AUDIT
from backdoor_audit.options import OPTIONS, AuditOptions, Option, build_options, check_paths, read_table
from backdoor_audit.plugin.fixtures import (
    audit_options,
    audit_run,
    audited_model,
    class_name,
    classifier,
    clean_set,
    detection,
    evidence,
    finding,
)
from backdoor_audit.plugin.session import SESSION, AuditSession
from backdoor_audit.plugin.supervision import Ending, may_split, split
from backdoor_audit.structure import brief

_NO_RUN = ("help", "version", "markers", "showfixtures", "show_fixtures_per_test", "cacheshow")
"""Options under which pytest tells something and runs nothing."""

__all__ = [
    "audit_options",
    "audit_run",
    "audited_model",
    "class_name",
    "classifier",
    "clean_set",
    "detection",
    "evidence",
    "finding",
]


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare every option under its prefixed name; those cannot clash with a project's own."""
    pluginmanager.register(Ending(), "backdoor_audit.ending")
    group = parser.getgroup("backdoor_audit", "backdoor audit of an image classifier")
    group.addoption(
        "--audit",
        action="store_true",
        default=False,
        dest="audit_requested",
        help="run the shipped audits on the model that the project's own fixture `audited_model` returns",
    )
    for option in OPTIONS:
        group.addoption(option.flag, help=option.help, **_declared(option))
    group.addoption(
        "--audit-limit",
        action="append",
        default=[],
        dest="audit_limit",
        metavar="NAME=VALUE",
        help="set a limit, e.g. anomaly_index=2.5 or clean_accuracy_drop=0.05; may be repeated",
    )


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Generator[None, None, None]:
    """Add the short names (`--model`, ...) once every plugin and conftest has declared its own, where they are free."""
    yield
    taken = {
        name
        for group in (parser._anonymous, *parser._groups)
        for declared in group.options
        for name in declared.names()
    }
    group = parser.getgroup("backdoor_audit")
    for option in OPTIONS:
        if option.alias not in taken:
            group.addoption(option.alias, help=f"short for {option.flag}", **_declared(option))


def _declared(option: Option) -> dict[str, Any]:
    """What both names of an option have in common."""
    switch: dict[str, Any] = {"nargs": "?", "const": "true"} if option.switch else {}
    return {"dest": _dest(option.key), "default": None, "metavar": option.metavar, **switch}


def _dest(key: str) -> str:
    return f"audit_{key}"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Let a second process run what audits, and give the exit code from this one."""
    options = audit_of(config)
    return split(config, options) if options is not None and may_split(config) else None


def audit_of(config: pytest.Config) -> AuditOptions | None:
    """The options of the audit that this process answers for; None if there is none, or if pytest_configure refuses them."""
    if config.option.collectonly or hasattr(config, "workerinput"):
        return None
    try:
        options = _asked_for(config)
        if options is not None:
            check_paths(options)
    except OptionError:
        return None
    return options


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin an audit session if one is asked for; wrong options end the run here, with one line and exit code 4."""
    try:
        options = _asked_for(config)
        if options is None:
            return
        check_paths(options)
    except OptionError as error:
        raise pytest.UsageError(f"backdoor_audit: {error}") from None
    explicit = _names_paths(config)
    selected, paths = _split_arguments(config) if explicit else ([], [])
    if _requested(config) and (not explicit or selected):
        config.args[:] = paths  # a gate run is about the model, not about the project's own tests
    wanted = not explicit or bool(selected)
    session = AuditSession(config, options, selected if explicit else [], wanted)
    config.stash[SESSION] = session
    config.pluginmanager.register(session, "backdoor_audit.session")
    if session.is_controller:
        config.pluginmanager.register(session.closing, "backdoor_audit.closing")
    draws = session.is_controller and not config.option.collectonly
    if draws and config.pluginmanager.hasplugin("html") and not config.option.htmlpath:
        config.option.htmlpath = str(Path(options.report) / "report.html")
        config.option.self_contained_html = True


def _asked_for(config: pytest.Config) -> AuditOptions | None:
    """The options of the audit that this run is, None if it is none. Raises `OptionError`."""
    if any(getattr(config.option, name, False) for name in _NO_RUN):
        return None
    given = _given(config)
    requested = _requested(config)
    table = read_table(config.rootpath) if requested or _mentions_audit(config.rootpath) else {}
    if not requested and "model" not in table:
        _refuse_options_without_model(config)
        return None
    return build_options(given, _limit_pairs(config.option.audit_limit), table, config.rootpath)


def _typed(config: pytest.Config) -> tuple[str, ...]:
    """What the caller typed: without what the project's files and the environment add to every run."""
    return tuple(map(str, config.invocation_params.args))


def _names_paths(config: pytest.Config) -> bool:
    """Whether the caller named paths or items; those of ``addopts`` select nothing where an audit is asked for."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return False
    return not _requested(config) or any(argument in _typed(config) for argument in config.args)


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


def _given(config: pytest.Config) -> dict[str, str]:
    """What the command line says."""
    values = {option.key: getattr(config.option, _dest(option.key), None) for option in OPTIONS}
    return {key: value for key, value in values.items() if value is not None}


def _requested(config: pytest.Config) -> bool:
    """Whether the command line asks for an audit; a model in pyproject.toml may do so as well."""
    return "model" in _given(config) or bool(config.option.audit_requested)


def _mentions_audit(folder: Path) -> bool:
    """Whether pyproject.toml could name a model; a broken file of a project that does not use us is not our business."""
    file = folder / "pyproject.toml"
    try:
        return os.path.isfile(file) and "[tool.backdoor_audit" in file.read_text(encoding="utf-8", errors="replace")
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


def _split_arguments(config: pytest.Config) -> tuple[list[str], list[str]]:
    """Arguments that select shipped audits (`audit`, `audit::...`), and all others."""
    selected = [
        argument
        for argument in config.args
        if argument.startswith(f"{AUDIT}::")
        or (argument == AUDIT and (_requested(config) or not os.path.exists(argument)))
    ]
    return selected, [argument for argument in config.args if argument not in selected]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item for each that a question of the audit lists: a shipped one, or a copy of it in the project."""
    session = metafunc.config.stash.get(SESSION, None)
    if session is None or "finding" not in metafunc.fixturenames:
        return
    question = session.question_of(metafunc)
    if question is not None:
        from backdoor_audit.questions.checks import items_of

        items = items_of(question, session.start())
        asked = [(question, item) for item in items]
        metafunc.parametrize("finding", asked, ids=[item.brackets for item in items], indirect=True)

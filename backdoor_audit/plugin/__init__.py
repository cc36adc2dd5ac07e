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

from backdoor_audit import cores
from backdoor_audit.errors import OptionError
from backdoor_audit.option_paths import check_paths
from backdoor_audit.options import OPTIONS, AuditOptions, Option
from backdoor_audit.plugin.asked import (
    CLOSING,
    ENDING,
    SESSION_NAME,
    asked_for,
    may_audit,
    refuse_blocked,
    refuse_lists_of_others,
    shadowed,
)
from backdoor_audit.plugin.behind_a_space import take_back_values
from backdoor_audit.plugin.collection import question_of
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
from backdoor_audit.plugin.given import OWN, collects, dest, names_paths, requested, split_arguments
from backdoor_audit.plugin.outputs import refuse_overlap
from backdoor_audit.plugin.recording import HTML
from backdoor_audit.plugin.session import SESSION, AuditSession
from backdoor_audit.plugin.supervision import CHANNEL, GUARDED, Ending, guard_exit, may_split, split

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
    pluginmanager.register(Ending(), ENDING)
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
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, None, None]:
    """Add the short names (`--model`, ...) once every plugin and conftest has declared its own, where they are free.

    What guards the exit code is registered anew, behind them: the last to come is the outermost. A conftest may import torch.
    """
    if may_audit(early_config, args):
        cores.wait_asleep(os.environ)
        early_config.stash[GUARDED] = guard_exit()  # before a conftest takes hold of it
    take_back_values(early_config, args, _taken(parser))
    try:
        yield
    except BaseException as error:
        if (before := early_config.stash.get(GUARDED, None)) is not None:
            os._exit = before  # type: ignore[assignment]
        if isinstance(error, SystemExit) and not error.code and may_audit(early_config, args):
            raise SystemExit(
                "backdoor_audit: INCONCLUSIVE: a conftest or plugin ended pytest before the audit"
            ) from None
        raise
    plugins = early_config.pluginmanager
    ending = plugins.get_plugin(ENDING)
    if ending is not None:
        plugins.unregister(ending)
    plugins.register(ending or Ending(), ENDING)
    taken, group = _taken(parser), parser.getgroup("backdoor_audit")
    for option in OPTIONS:
        if option.alias not in taken:
            early_config.stash.setdefault(OWN, set()).add(option.alias)
            group.addoption(option.alias, help=f"short for {option.flag}", **_declared(option))


def _taken(parser: pytest.Parser) -> set[str]:
    """The names of all options that were declared so far."""
    groups = (parser._anonymous, *parser._groups)
    return {name for group in groups for declared in group.options for name in declared.names()}


def _declared(option: Option) -> dict[str, Any]:
    """What both names of an option have in common."""
    switch: dict[str, Any] = {"nargs": "?", "const": "true"} if option.switch else {}
    return {"dest": dest(option.key), "default": None, "metavar": option.metavar, **switch}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Let a second process run what audits, and give the exit code from this one."""
    try:
        refuse_lists_of_others(config)
    except OptionError as error:
        raise pytest.UsageError(f"backdoor_audit: {error}") from None
    options = audit_of(config)
    return split(config, options) if options is not None and may_split(config) else None


def audit_of(config: pytest.Config) -> AuditOptions | None:
    """The options of the audit that this process answers for; None if there is none, or if pytest_configure refuses them."""
    if config.option.collectonly or hasattr(config, "workerinput"):
        return None
    try:
        options = asked_for(config)
        if options is not None:
            check_paths(options)
            refuse_overlap(config, options)
    except OptionError:
        return None
    return options


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin an audit session if one is asked for; wrong options end the run here, with one line and exit code 4."""
    try:
        options = asked_for(config)
        if options is None:
            return
        check_paths(options)
        refuse_overlap(config, options)
        refuse_blocked(config)
    except OptionError as error:
        raise pytest.UsageError(f"backdoor_audit: {error}") from None
    if CHANNEL in config.stash:  # else this process is somebody else's
        cores.share(_workers(config), os.environ)
    wanted = collects(config)
    selected, paths = split_arguments(config) if names_paths(config) else ([], [])
    if wanted and (selected or requested(config)):
        config.args[:] = paths  # a gate run is about the model, not about the project's own tests
    session = AuditSession(config, options, selected, wanted)
    config.stash[SESSION] = session
    config.pluginmanager.register(session, SESSION_NAME)
    if session.is_controller:
        config.pluginmanager.register(session.closing, CLOSING)
    draws = session.is_controller and wanted and not config.option.collectonly
    if draws and all(map(config.pluginmanager.hasplugin, ("html", "metadata"))) and not config.option.htmlpath:
        config.option.htmlpath = str(Path(options.report) / HTML)
        config.option.self_contained_html = True


def _workers(config: pytest.Config) -> int:
    """How many processes xdist is to begin, one for each ``--tx popen`` or ``N*popen``, which ``-n`` gives as well."""
    counts = [spec.rpartition("*")[0] or "1" for spec in map(str, getattr(config.option, "tx", None) or ())]
    return max(1, sum(int(count) for count in counts if count.isdecimal()))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say so if ``--model`` asks for no audit in a project that has set one up."""
    return shadowed(config) or None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item for each that a question of the audit lists: a shipped one, or a copy of it in the project."""
    session = metafunc.config.stash.get(SESSION, None)
    if session is None or "finding" not in metafunc.fixturenames:
        return
    question = question_of(metafunc, session.suite)
    if question is not None:
        from backdoor_audit.questions.checks import items_of

        items = items_of(question, session.start())
        asked = [(question, item) for item in items]
        metafunc.parametrize("finding", asked, ids=[item.brackets for item in items], indirect=True)

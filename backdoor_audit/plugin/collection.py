"""The items of a run: the files of the suite as pytest modules, and the question that each of their tests asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from backdoor_audit.errors import AuditError
from backdoor_audit.item import AUDIT, Item

if TYPE_CHECKING:
    from backdoor_audit.questions import Question
    from backdoor_audit.questions.suite import Suite

FIXTURES = "backdoor_audit.plugin.fixtures"
"""The module of the audit's own fixtures, which imports the session."""

_DECIDING = ("audit_options", "audit_run", "evidence", "finding")
"""Fixtures by which the audit's items are decided; a project gives `audited_model` alone."""


class AuditModule(pytest.Module):
    """A file of the suite: what its tests are called does not depend on the project's ``python_functions``."""

    def funcnamefilter(self, name: str) -> bool:
        """Whether a function is a test."""
        return name.startswith("test_")


def audit_items(
    session: pytest.Session, suite: Suite, node_ids: Sequence[str], selected: Sequence[str]
) -> Iterator[pytest.Item]:
    """The items of a suite that are ``selected``; ``node_ids`` are those of a complete run."""
    asked = {Item.parse(name).question for name in node_ids}
    files = dict.fromkeys(entry.file for entry in suite.entries if entry.question.name in asked)
    filters = session.config.pluginmanager.has_plugin("warnings")  # else strict markers do not know the mark
    for path in files:  # one that asks nothing is left out: pytest would show an item of it as skipped
        module = AuditModule.from_parent(session, path=path.absolute(), nodeid=AUDIT)
        for item in session.genitems(module):
            if isinstance(item, pytest.Item) and _is_selected(item.nodeid, selected):
                if filters:  # a warning of a stranger's network must not decide, however strict the project is
                    item.add_marker(pytest.mark.filterwarnings("default"))
                yield item


def stand_ins(items: Sequence[pytest.Item]) -> list[str]:
    """Fixtures that a project or plugin has put in the place of those by which these items of the audit are decided."""
    known = [item._fixtureinfo.name2fixturedefs for item in items if isinstance(item, pytest.Function)]
    return [
        f"the fixture {name}"
        for name in _DECIDING
        if any(fixtures[name][-1].func.__module__ != FIXTURES for fixtures in known if name in fixtures)
    ]


def question_of(metafunc: pytest.Metafunc, suite: Suite) -> Question | None:
    """The question whose items a test function takes: the suite's, or that of a module in the project. None without one."""
    from backdoor_audit.questions.suite import names_some, questions_of

    name = metafunc.definition.originalname.removeprefix("test_")
    if metafunc.definition.nodeid.startswith(f"{AUDIT}::"):
        return suite.question(name)
    try:
        own = questions_of(metafunc.module, str(metafunc.module.__file__)) if names_some(metafunc.module) else ()
    except AuditError as error:
        raise pytest.UsageError(f"backdoor_audit: {error}") from None
    return next((question for question in own if question.name == name), None)


def _is_selected(nodeid: str, selected: Sequence[str]) -> bool:
    wanted = [argument for argument in selected if argument != AUDIT]
    return not wanted or any(nodeid == argument or nodeid.startswith(f"{argument}[") for argument in wanted)

"""What came of every item: only what the audit itself decided counts as decided."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from _pytest.outcomes import Exit

from backdoor_audit.evidence import WORST_FIRST, Finding, Verdict
from backdoor_audit.item import AUDIT
from backdoor_audit.presentable import together
from backdoor_audit.printable import printable

if TYPE_CHECKING:
    from backdoor_audit.questions import Question

FINDINGS = pytest.StashKey[list[Finding]]()
SKIPPED = pytest.StashKey[str]()
QUESTION: pytest.StashKey[Question] = pytest.StashKey()
EXTRAS = pytest.StashKey[list[dict[str, Any]]]()

_BY_ENTRY = ("detections", "properties", "repairs", "canaries", "exhibits", "activations")
"""Sections of which each process computes some entries."""
_CRASHED = "???"  # when xdist reports an item during which its worker died


class UsageExit(Exit):
    """The audit's own word that it was called wrongly."""

    def __init__(self, message: str) -> None:
        super().__init__(message, returncode=int(pytest.ExitCode.USAGE_ERROR))


def is_audit(item: pytest.Item) -> bool:
    """Whether the item asks a question of the audit: a shipped one, or one of the project's own that submits evidence."""
    return item.nodeid.startswith(f"{AUDIT}::") or "evidence" in getattr(item, "fixturenames", ())


def skip(item: pytest.Item, reason: str) -> NoReturn:
    """Skip an item by the audit's own decision; any other skip leaves the item undecided."""
    item.stash[SKIPPED] = reason
    pytest.skip(reason)


@contextmanager
def contained(item: pytest.Item) -> Generator[None]:
    """A phase of an item. If the item asks the audit, `pytest.exit` that comes out of it ends the item and not the run."""
    try:
        yield
    except Exit as error:
        if isinstance(error, UsageExit) or not is_audit(item):
            raise
        pytest.fail(f"inconclusive: pytest.exit was called while the item ran ({printable(str(error))})", pytrace=False)


def decided(item: pytest.Item) -> dict[str, Any]:
    """What the audit has decided about the item so far, as it travels with a report."""
    return {
        "findings": [finding.to_json() for finding in item.stash.get(FINDINGS, [])],
        "skipped": item.stash.get(SKIPPED, None),
    }


@dataclass
class Outcomes:
    """What the items of a run came to, by node id, and what was computed for them."""

    findings: dict[str, Finding] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def add(self, report: pytest.TestReport) -> None:
        """Take the report of one phase of an item.

        Of several findings the worst stands, so that an item that is run again cannot get better. An item that ended without a
        finding or a skip of the audit's own is an error, whatever pytest calls its outcome: passed, skipped or xfailed. So is one
        that broke and is run again ("rerun").
        """
        submitted = getattr(report, "backdoor_audit", None)
        if submitted is None and not report.nodeid.startswith(f"{AUDIT}::") and report.when != _CRASHED:
            return
        sent = submitted or {"findings": [], "skipped": None, "sections": {}, "told": []}
        _merge(self.sections, sent["sections"])
        self.told += [text for text in sent["told"] if text not in self.told]
        for finding in map(Finding.from_json, sent["findings"]):
            self._add_finding(report.nodeid, finding)
        if sent["skipped"] is not None:
            self.skipped.setdefault(report.nodeid, sent["skipped"])
        undecided = self._undecided(report)
        if undecided:
            self.errors.setdefault(report.nodeid, printable(undecided))

    def _add_finding(self, nodeid: str, finding: Finding) -> None:
        known = self.findings.get(nodeid)
        if known is None or WORST_FIRST.index(finding.verdict) < WORST_FIRST.index(known.verdict):
            self.findings[nodeid] = finding

    def _undecided(self, report: pytest.TestReport) -> str:
        """Why this phase leaves the item without a decision of the audit, or an empty string."""
        found = self.findings.get(report.nodeid)
        answered = found is not None or report.nodeid in self.skipped
        stopped = found is not None and found.verdict is not Verdict.PASS  # what the audit fails an item by
        broke = report.outcome not in ("passed", "skipped")
        if broke and not (stopped and report.when == "call"):
            crash = getattr(report.longrepr, "reprcrash", None)
            # a fixture that is not there has an error string; of a worker that died xdist says so in a text
            message = crash.message if crash else getattr(report.longrepr, "errorstring", None)
            message = message or str(report.longrepr)
            return (message.strip().splitlines() or ["broken"])[0]
        if answered:
            return ""
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
            return f"skipped by other code than the audit's ({reason.removeprefix('Skipped: ') or 'no reason given'})"
        return "ended without an answer" if report.when == "call" else ""


def _merge(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add what one process computed; a detection counts as recalled only if no process of this run computed it."""
    computed = [name for name, entry in known.get("detections", {}).items() if not entry["recalled"]]
    for name, value in more.items():
        if name == "sections":
            known[name] = together((known.get(name, {}), value))
        elif name in _BY_ENTRY:
            known.setdefault(name, {}).update(value)
        else:
            known[name] = value
    for name in computed:
        known["detections"][name]["recalled"] = False

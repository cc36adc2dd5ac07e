"""What audits, and a project's own tests, can ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from backdoor_audit.errors import AuditError
from backdoor_audit.evidence import Finding, Verdict
from backdoor_audit.installed import is_advisory
from backdoor_audit.item import Item
from backdoor_audit.options import AuditOptions
from backdoor_audit.plugin.outcomes import EXTRAS, FINDINGS, QUESTION, UsageExit, skip
from backdoor_audit.plugin.session import SESSION, AuditSession
from backdoor_audit.report.junit import case_properties

if TYPE_CHECKING:
    from torch import nn

    from backdoor_audit.data import CleanSet
    from backdoor_audit.detectors import Detection
    from backdoor_audit.model.classifier import Classifier
    from backdoor_audit.questions import Question
    from backdoor_audit.run.run import Run


@pytest.fixture(scope="session")
def audit_options(request: pytest.FixtureRequest) -> AuditOptions:
    """The options of this audit."""
    return _session(request.config).options


@pytest.fixture(scope="session")
def audited_model(audit_options: AuditOptions) -> nn.Module | None:
    """The module to audit. Override it in the root conftest to hand over any `torch.nn.Module`; None: the file of --model."""
    if not audit_options.model:
        raise UsageExit(
            "backdoor_audit: no model; pass --audit-model=PATH, or define a session fixture audited_model in the root "
            "conftest that returns a torch.nn.Module"
        )
    return None


@pytest.fixture(scope="session")
def audit_run(request: pytest.FixtureRequest, audited_model: nn.Module | None) -> Run:
    """The run behind all audits: loaded once per process, finished work shared between processes."""
    session = _session(request.config)
    if audited_model is not None and session.options.model:
        raise UsageExit(
            f"backdoor_audit: the model is given twice, as the file {session.options.model} and by the fixture audited_model; "
            "leave one of them out"
        )
    try:
        return session.start(audited_model)
    except AuditError as error:
        pytest.fail(f"inconclusive: {error}", pytrace=False)


@pytest.fixture(scope="session")
def classifier(audit_run: Run) -> Classifier:
    """The audited model as a frozen classifier over pixels in [0, 1]."""
    return audit_run.classifier


@pytest.fixture(scope="session")
def clean_set(audit_run: Run) -> CleanSet:
    """The clean images."""
    return audit_run.clean_set


@pytest.fixture(scope="session")
def class_name(audit_run: Run) -> Callable[[int | None], str]:
    """How to call a class."""
    return audit_run.class_name


@pytest.fixture
def detection(request: pytest.FixtureRequest, audit_run: Run) -> Detection:
    """What a detector found; the search runs once for all items and workers."""
    from backdoor_audit.detectors import DETECTORS

    name = getattr(request, "param", DETECTORS[0].name)
    with _session(request.config).working(audit_run):
        return audit_run.searches.detection(name)


@pytest.fixture
def finding(request: pytest.FixtureRequest, audit_run: Run) -> Finding:
    """The answer to one item of the module's ``QUESTION``; skipped, with the reason, where there is none."""
    from backdoor_audit.questions import Skipped
    from backdoor_audit.questions.checks import ask

    session, asked = _session(request.config), getattr(request, "param", None)
    if asked is None:
        pytest.fail("inconclusive: a test that takes a finding stands beside QUESTION = ...", pytrace=False)
    question, item = asked
    try:
        with session.pace.shown() if item.question == "precondition" else session.working(audit_run):
            answer = ask(question, audit_run, item)
    except AuditError as error:
        pytest.fail(f"inconclusive: {error}", pytrace=False)
    if isinstance(answer, Skipped):
        skip(request.node, answer.reason)
    request.node.stash[QUESTION] = question
    named: Finding = answer.of(item, request.node.nodeid)
    return named


@pytest.fixture
def evidence(request: pytest.FixtureRequest, audit_run: Run) -> Callable[[Finding], None]:
    """Submit the one finding of an item: it is recorded, drawn, and decides whether the item passes."""
    session = _session(request.config)

    def submit(finding: Finding) -> None:
        item = request.node
        question = item.stash.get(QUESTION, None)
        finding = replace(finding, audit=item.nodeid, item=finding.item if question else Item.parse(item.nodeid))
        if is_advisory(finding.item, audit_run.inputs.catalogue.plugins):
            item.stash[FINDINGS] = [*item.stash.get(FINDINGS, []), finding]
            pytest.skip(f"advisory: {finding.verdict.value}: {finding.reason}")
        finding, extras = _evidence(session, audit_run, question, finding)
        item.stash[FINDINGS] = [*item.stash.get(FINDINGS, []), finding]
        item.stash[EXTRAS] = [*item.stash.get(EXTRAS, []), *extras]
        item.user_properties += case_properties(finding)
        if finding.verdict is Verdict.PASS:
            return
        standing = session.standing(finding)
        reason = f"{finding.reason}; {standing.text}" if standing.text else finding.reason
        if finding.verdict is Verdict.INCONCLUSIVE:
            reason = f"inconclusive: {reason}"
        allowed = finding.verdict is Verdict.INCONCLUSIVE and session.options.inconclusive == "allow"
        if standing.accepted or allowed:
            pytest.skip(reason)
        pytest.fail(reason, pytrace=False)

    return submit


def _session(config: pytest.Config) -> AuditSession:
    session = config.stash.get(SESSION, None)
    if session is None:
        raise pytest.UsageError("backdoor_audit: this fixture needs an audit; pass --audit-model=PATH or --audit")
    return session


def _evidence(
    session: AuditSession, run: Run, question: Question | None, finding: Finding
) -> tuple[Finding, list[dict[str, Any]]]:
    """Write the artifacts of a finding, and draw its extras for pytest-html when that is there.

    What cannot be drawn or written is told at the end; the finding stands without it.
    """
    from backdoor_audit.report.extras import draw

    try:
        finding = _with_trigger(session, run, finding) if question else finding
        shown = question.show(run, finding) if question else {}
        drawn = draw(finding, shown, run.class_name) if session.config.pluginmanager.hasplugin("html") else []
        return finding, drawn
    except Exception as error:  # the model's code, a full disk, a picture that cannot be drawn
        reason = (str(error).splitlines() or [""])[0]
        run.inputs.store.told.append(f"{finding.audit}: no picture or trigger file ({type(error).__name__}: {reason})")
        return finding, []


def _with_trigger(session: AuditSession, run: Run, finding: Finding) -> Finding:
    """The finding with the file of its trigger, if a search flagged one."""
    searched = finding.item.question == "anomaly_index" and finding.target_class is not None
    trigger = run.searches.detection(finding.item.asked_of).trigger(finding.target_class) if searched else None
    if trigger is None or finding.verdict is not Verdict.FAIL:
        return finding
    name, folder = f"{finding.item.brackets}.safetensors", session.recorder.folder / "triggers"
    folder.mkdir(parents=True, exist_ok=True)
    trigger.save(folder / name)
    return replace(finding, artifacts={"trigger": f"triggers/{name}"})

"""What audits, and a project's own tests, can ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from backdoor_audit.errors import AuditError
from backdoor_audit.evidence import Finding, Limits, Verdict
from backdoor_audit.options import AuditOptions
from backdoor_audit.plugin.outcomes import AUDIT, EXTRAS, FINDINGS, UsageExit, skip
from backdoor_audit.plugin.session import SESSION, AuditSession
from backdoor_audit.report.junit import case_properties

if TYPE_CHECKING:
    from torch import nn

    from backdoor_audit import properties
    from backdoor_audit.baseline import Difference
    from backdoor_audit.canary import Sighting
    from backdoor_audit.data import CleanSet
    from backdoor_audit.detectors import Detection
    from backdoor_audit.model.classifier import Classifier
    from backdoor_audit.repairs import RepairOutcome
    from backdoor_audit.run.run import Audit


@pytest.fixture(scope="session")
def audit_options(pytestconfig: pytest.Config) -> AuditOptions:
    """The options of this audit."""
    return _session(pytestconfig).options


@pytest.fixture(scope="session")
def limits(audit_options: AuditOptions) -> Limits:
    """The numbers that findings are judged by."""
    return audit_options.limits


@pytest.fixture(scope="session")
def audit_index(audit_options: AuditOptions) -> str:
    """Which anomaly index is compared with the limit: calibrated or paper."""
    return audit_options.index


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
def audit_run(pytestconfig: pytest.Config, audited_model: nn.Module | None) -> Audit:
    """The run behind all audits: loaded once per process, finished work shared between processes."""
    if audited_model is not None and _session(pytestconfig).options.model:
        raise UsageExit(
            f"backdoor_audit: the model is given twice, as the file {_session(pytestconfig).options.model} and by the fixture "
            "audited_model; leave one of them out"
        )
    try:
        return _session(pytestconfig).start(audited_model)
    except AuditError as error:
        pytest.fail(f"inconclusive: {error}", pytrace=False)


@pytest.fixture(scope="session")
def classifier(audit_run: Audit) -> Classifier:
    """The audited model as a frozen classifier over pixels in [0, 1]."""
    return audit_run.classifier


@pytest.fixture(scope="session")
def clean_set(audit_run: Audit) -> CleanSet:
    """The clean images."""
    return audit_run.clean_set


@pytest.fixture(scope="session")
def class_name(audit_run: Audit) -> Callable[[int | None], str]:
    """How to call a class."""
    return audit_run.class_name


@pytest.fixture(scope="session")
def preconditions(pytestconfig: pytest.Config, audit_run: Audit) -> Mapping[str, Finding]:
    """The finding of every precondition, by name."""
    try:
        with _session(pytestconfig).pace.shown():
            return audit_run.preconditions
    except AuditError as error:
        pytest.fail(f"inconclusive: {error}", pytrace=False)


@pytest.fixture
def detection(request: pytest.FixtureRequest, audit_run: Audit) -> Detection:
    """What a detector found; the search runs once for all items and workers."""
    from backdoor_audit.detectors import DETECTORS

    name = getattr(request, "param", DETECTORS[0].name)
    with _session(request.config).working(audit_run):
        return audit_run.detection(name)


@pytest.fixture
def property_outcome(request: pytest.FixtureRequest, audit_run: Audit) -> properties.Outcome:
    """What came of one property; the search runs once for all workers."""
    with _session(request.config).working(audit_run):
        return audit_run.asked(request.param)


@pytest.fixture
def repair(request: pytest.FixtureRequest, audit_run: Audit) -> tuple[RepairOutcome, ...]:
    """How one repair did on every flagged trigger; skipped when there is none, or the method cannot be applied."""
    return _outcomes(request, audit_run, audit_run.no_trigger)


@pytest.fixture
def tried_repair(request: pytest.FixtureRequest, audit_run: Audit) -> tuple[RepairOutcome, ...]:
    """The same, and with ``--audit-repairs=always`` also for a model in which nothing was flagged."""
    return _outcomes(request, audit_run, audit_run.no_repair)


def _outcomes(request: pytest.FixtureRequest, audit_run: Audit, reason: str) -> tuple[RepairOutcome, ...]:
    from backdoor_audit.run.run import not_applicable

    if not reason:
        try:
            with _session(request.config).working(audit_run):
                reason = not_applicable(audit_run.repair(request.param))
        except AuditError as error:
            pytest.fail(f"inconclusive: {error}", pytrace=False)
    if reason:
        skip(request.node, reason)
    return audit_run.repair(request.param)


@pytest.fixture
def nothing_flagged(audit_run: Audit) -> bool:
    """Whether no trigger was found and none is known."""
    return bool(audit_run.no_trigger)


@pytest.fixture
def filtering(request: pytest.FixtureRequest, audit_run: Audit) -> Finding:
    """How one runtime filter does on the flagged triggers; skipped when there is none, or the filter cannot be fitted."""
    try:
        with _session(request.config).working(audit_run):
            finding = audit_run.filtering(request.param)
    except AuditError as error:
        pytest.fail(f"inconclusive: {error}", pytrace=False)
    if isinstance(finding, str):
        skip(request.node, finding)
    return finding


@pytest.fixture
def sightings(request: pytest.FixtureRequest, audit_run: Audit) -> tuple[Sighting, ...]:
    """What the detectors made of one kind of canary: class by class and dose by dose."""
    with _session(request.config).working(audit_run):
        return audit_run.sightings(request.param)


@pytest.fixture(scope="session")
def audit_difference(audit_run: Audit) -> Difference:
    """What got worse and better since the baseline."""
    from backdoor_audit.gate import difference_of

    return difference_of(audit_run)


@pytest.fixture
def regression(request: pytest.FixtureRequest, audit_difference: Difference) -> Finding:
    """One question about the baseline; skipped when there is nothing to compare."""
    from backdoor_audit.baseline import regressions

    finding = regressions(audit_difference)[request.param]
    if isinstance(finding, str):
        skip(request.node, finding)
    return finding


@pytest.fixture
def evidence(request: pytest.FixtureRequest, audit_run: Audit) -> Callable[[Finding], None]:
    """Submit the one finding of an item: it is recorded, drawn, and decides whether the item passes."""
    session = _session(request.config)

    def submit(finding: Finding) -> None:
        item = request.node
        finding = replace(finding, audit=item.nodeid)
        finding, extras = _evidence(session, audit_run, finding)
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


def _evidence(session: AuditSession, run: Audit, finding: Finding) -> tuple[Finding, list[dict[str, Any]]]:
    """Write the artifacts of a finding, and draw its extras for pytest-html when that is there.

    What cannot be drawn or written is told at the end; the finding stands without it.
    """
    try:
        finding = _with_artifacts(session, run, finding)
        return finding, _extras(session, run, finding)
    except Exception as error:  # the model's code, a full disk, a picture that cannot be drawn
        reason = (str(error).splitlines() or [""])[0]
        run.store.told.append(f"{finding.audit}: no picture or trigger file ({type(error).__name__}: {reason})")
        return finding, []


def _extras(session: AuditSession, run: Audit, finding: Finding) -> list[dict[str, Any]]:
    from backdoor_audit.report.extras import draw

    shown = run.show(finding)
    return draw(run, finding, shown) if session.config.pluginmanager.hasplugin("html") else []


def _with_artifacts(session: AuditSession, run: Audit, finding: Finding) -> Finding:
    shipped = finding.audit.startswith(f"{AUDIT}::test_anomaly_index[")
    if shipped and finding.verdict is Verdict.FAIL and finding.target_class is not None:
        name = f"{finding.audit.rpartition('[')[2].rstrip(']')}.safetensors"
        trigger = run.detection(name.partition("-")[0]).trigger(finding.target_class)
        if trigger is not None:
            (session.report / "triggers").mkdir(parents=True, exist_ok=True)
            trigger.save(session.report / "triggers" / name)
            return replace(finding, artifacts={"trigger": f"triggers/{name}"})
    return finding

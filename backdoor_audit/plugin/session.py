"""One audit in one process: from loading the model to writing the record."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Generator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.junitxml import xml_key  # pytest has no public way to say something about a suite at its end

from backdoor_audit.errors import AuditError
from backdoor_audit.evidence import Finding, Record, plain
from backdoor_audit.options import AuditOptions
from backdoor_audit.report.paths import FILES
from backdoor_audit.report.terminal import summary_lines

if TYPE_CHECKING:
    from torch import nn

    from backdoor_audit.baseline import Standing
    from backdoor_audit.run import Audit

AUDIT = "audit"  # node ids of the shipped audits begin with it, and it selects them on the command line
SESSION = pytest.StashKey["AuditSession"]()
FINDING = pytest.StashKey[Finding]()
EXTRAS = pytest.StashKey[list[dict[str, Any]]]()


class AuditSession:
    """One audit in one process: collects the shipped items, and on the controller gathers what they submit."""

    def __init__(self, config: pytest.Config, options: AuditOptions, selected: list[str], collects: bool) -> None:
        self.config, self.options, self.selected, self.collects = config, options, selected, collects
        self.workerinput: Mapping[str, Any] | None = getattr(config, "workerinput", None)
        self.report = Path(options.report)
        self.began = time.perf_counter()
        self.budget_began = float(self.workerinput["backdoor_audit_began"]) if self.workerinput else time.time()
        self.run: Audit | None = None
        self.record: Record | None = None
        self.expected: list[str] = []
        self.findings: dict[str, Finding] = {}
        self.skipped: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.sections: dict[str, Any] = {}
        self.written: list[Path] = []
        self.told: list[str] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def is_controller(self) -> bool:
        """Whether this process writes the record: the only one, or the one that hands out items to workers."""
        return self.workerinput is None

    @property
    def today(self) -> date:
        """The day on which the run began: the same for all workers."""
        return date.fromtimestamp(self.budget_began)

    def standing(self, finding: Finding) -> Standing:
        """Whether somebody answers for a finding that is no pass."""
        from backdoor_audit.baseline import Standing, standing

        baseline = self.start().baseline
        return standing(baseline, finding, self.today) if baseline else Standing()

    def store_folder(self) -> Path:
        """Where finished work is kept: pytest's cache, or a folder of this run when the cache is switched off."""
        if self.workerinput is not None:
            return Path(self.workerinput["backdoor_audit_store"])
        cache = getattr(self.config, "cache", None)
        if cache is not None:
            return Path(cache.mkdir("backdoor_audit"))
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="backdoor_audit-")
        return Path(self._scratch.name)

    def start(self, module: nn.Module | None = None) -> Audit:
        """The run of this process, with everything loaded. Raises `AuditError`."""
        if self.run is None or (module is not None and self.run.module is not module):
            from backdoor_audit.run import Audit
            from backdoor_audit.store import Store

            worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
            self.run = Audit(
                self.options,
                Store(self.store_folder()),
                module=module,
                progress=True,
                began=self.budget_began,
                worker=int(worker) if worker.isdigit() else 0,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # a stranger's network may warn, however strict the project is
                self.run.check()
        return self.run

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Load model and images before anything else happens, so that a mistake costs seconds and shows as one line."""
        if not self.is_controller:
            return
        try:
            run = self.start()
            self.expected = run.item_names()
            if not self.config.option.collectonly:
                self.report.mkdir(parents=True, exist_ok=True)
                self._drop_old_evidence()
        except AuditError as error:
            with suppress(OSError):
                self.report.rmdir()  # pytest-html may have made it; only an empty folder goes
            raise pytest.UsageError(f"backdoor_audit: {error}") from None
        except OSError as error:
            raise pytest.UsageError(
                f"backdoor_audit: --audit-report: {self.report} cannot be written ({error})"
            ) from None

    def _drop_old_evidence(self) -> None:
        """Remove what an earlier run left in the folder: a run that is killed must not leave another model's verdict."""
        for file in (
            *self.report.glob("triggers/*.safetensors"),
            *map(self.report.joinpath, (*FILES, "report.html")),
        ):
            file.unlink(missing_ok=True)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker what the controller knows already."""
        node.workerinput["backdoor_audit_store"] = str(self.store_folder())
        node.workerinput["backdoor_audit_began"] = self.budget_began

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the shipped audits under node ids that read well and can be run again."""
        if not self.collects:
            return
        for path in sorted(audits_folder().glob("test_*.py"), key=_audit_order):
            if path.stem == "test_power" and not self.options.canary:
                continue
            if path.stem == "test_regression" and (not self.options.baseline or self.options.update_baseline):
                continue
            module = pytest.Module.from_parent(session, path=path, nodeid=AUDIT)
            for item in session.genitems(module):
                if isinstance(item, pytest.Item) and self._is_selected(item.nodeid):
                    # a warning of a stranger's network must not decide the verdict, however strict the project is
                    item.add_marker(pytest.mark.filterwarnings("default"))
                    items.append(item)

    def _is_selected(self, nodeid: str) -> bool:
        wanted = [argument for argument in self.selected if argument != AUDIT]
        return not wanted or any(nodeid == argument or nodeid.startswith(f"{argument}[") for argument in wanted)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Let the finding, its pictures, and what was computed so far travel with the item's report."""
        report = yield
        if report.when == "call" and FINDING in item.stash:
            sections = plain({**self.run.sections(), **self.run.take_shown()}) if self.run else {}
            vars(report).update(
                extras=[*getattr(report, "extras", []), *item.stash.get(EXTRAS, [])],
                backdoor_audit={"finding": item.stash[FINDING].to_json(), "sections": sections},
            )
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather findings, skips and broken items; with workers this runs on the controller as well as in each worker."""
        if not self.is_controller or not report.nodeid.startswith(f"{AUDIT}::"):
            return
        submitted = getattr(report, "backdoor_audit", None)
        if submitted is not None:
            self.findings[report.nodeid] = Finding.from_json(submitted["finding"])
            _merge(self.sections, submitted["sections"])
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[report.nodeid] = reason.removeprefix("Skipped: ")
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash else report.longreprtext
            self.errors[report.nodeid] = (message.strip().splitlines() or ["broken"])[0]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the record and its renderings, whatever happened to single items, and the baseline if it was asked for."""
        if self.is_controller and (self.findings or self.skipped or self.errors):
            from backdoor_audit.gate import beside_baseline, build_record

            run = self.start()
            self.record = build_record(
                {"subject": run.subject(), "environment": run.environment(), **self.sections}
                if run.module is not None or self.options.model
                else self.sections,
                run.settings(),
                findings=self.findings,
                skipped=self.skipped,
                errors=self.errors,
                expected=self.expected,
                seconds=time.perf_counter() - self.began,
            )
            self.record = beside_baseline(run, self.record, self.today)
            if self.options.update_baseline and not self._update_baseline(run):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self._write(session.exitstatus)

    def _update_baseline(self, run: Audit) -> bool:
        """Whether the baseline was written from the record; the summary tells what came of it."""
        from backdoor_audit.gate import write_baseline

        assert self.record is not None
        try:
            self.told = write_baseline(run, self.record, self.today)
        except (AuditError, OSError) as error:
            self.told = [str(error)]
            return False
        return True

    def _write(self, exit_code: int) -> None:
        from backdoor_audit.report.files import write_files
        from backdoor_audit.report.junit import suite_properties
        from backdoor_audit.report.markdown import append_step_summary

        assert self.record is not None
        self.written = list(write_files(self.record, self.report, exit_code=int(exit_code)))
        junit = self.config.stash.get(xml_key, None)
        if junit is not None:
            for name, value in suite_properties(self.record):
                junit.add_global_property(name, str(value))
        try:
            append_step_summary(self.record, os.environ)
        except OSError as error:
            self.told.append(f"GITHUB_STEP_SUMMARY cannot be written ({error})")

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_report_title(self, report: Any) -> None:
        """Name the page after the model."""
        report.title = f"Backdoor audit of {Path(self.options.model).name or 'a module'}"

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        """Put the verdict at the head of the page."""
        if self.record is not None:
            from backdoor_audit.report.extras import verdict_banner

            prefix.append(verdict_banner(self.record))

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The verdict in words, every finding that is not a pass, and where the evidence is."""
        if self.record is None:
            return
        terminalreporter.section("backdoor audit")
        for line, markup in summary_lines(self.record):
            terminalreporter.write_line(line, **markup)
        for line in self.told:
            terminalreporter.write_line(line)
        pages = self.written
        if getattr(self.config.option, "htmlpath", None):
            pages = [*pages, Path(self.config.option.htmlpath)]
        terminalreporter.write_line(f"evidence: {', '.join(map(str, pages))}")

    def pytest_unconfigure(self) -> None:
        """Drop the folder that stood in for pytest's cache."""
        if self._scratch is not None:
            self._scratch.cleanup()


def audits_folder() -> Path:
    """The shipped audits: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "audits"
    return inside if inside.is_dir() else package.parent / "audits"


def _audit_order(path: Path) -> tuple[int, str]:
    """Cheap questions first, repairs and canaries last; a new audit goes between."""
    first, last = (
        ["test_preconditions", "test_anomaly_index", "test_properties"],
        ["test_repair", "test_power", "test_regression"],
    )
    known = [*first, "", *last]
    return known.index(path.stem if path.stem in known else ""), path.stem


_BY_ENTRY = ("detections", "properties", "repairs", "canaries", "exhibits", "activations")
"""Sections of which each process computes some entries."""


def _merge(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add what one process computed; a detection counts as recalled only if no process of this run computed it."""
    computed = [name for name, entry in known.get("detections", {}).items() if not entry["recalled"]]
    for name, value in more.items():
        if name in _BY_ENTRY:
            known.setdefault(name, {}).update(value)
        else:
            known[name] = value
    for name in computed:
        known["detections"][name]["recalled"] = False

"""One audit in one process: from loading the model to the verdict that ends the run."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from backdoor_audit.errors import AuditError, ModelError
from backdoor_audit.evidence import Finding
from backdoor_audit.item import AUDIT
from backdoor_audit.options import AuditOptions
from backdoor_audit.plugin.agreement import Agreement
from backdoor_audit.plugin.closing import Closing
from backdoor_audit.plugin.collection import FIXTURES, audit_items, stand_ins
from backdoor_audit.plugin.folders import Folders
from backdoor_audit.plugin.outcomes import EXTRAS, Outcomes, contained, decided, is_audit
from backdoor_audit.plugin.outputs import reports_of_others
from backdoor_audit.plugin.pace import Pace
from backdoor_audit.plugin.recording import RUN, Recorder, place_of
from backdoor_audit.plugin.signals import Signals
from backdoor_audit.plugin.supervision import CHANNEL, JUDGED, REFUSED
from backdoor_audit.presentable import plain
from backdoor_audit.printable import printable

if TYPE_CHECKING:
    from torch import nn

    from backdoor_audit.baseline import Standing
    from backdoor_audit.questions.suite import Suite
    from backdoor_audit.run.run import Run

SESSION = pytest.StashKey["AuditSession"]()


class AuditSession:
    """One audit in one process: collects the shipped items, and on the controller gathers what they submit."""

    def __init__(self, config: pytest.Config, options: AuditOptions, selected: list[str], collects: bool) -> None:
        self.config, self.options, self.selected, self.collects = config, options, selected, collects
        self.workerinput: Mapping[str, Any] | None = getattr(config, "workerinput", None)
        self.budget_began = float(self.workerinput["backdoor_audit_began"]) if self.workerinput else time.time()
        self.folders = Folders(config, self.budget_began)
        self.run: Run | None = None
        self.expected: list[str] = []
        self.outcomes = Outcomes()
        self.recorder = Recorder(options, reports_of_others(config))
        self.items: list[str] = []
        self.pace = Pace(config, *self._among_workers())
        self.closing = Closing(config, self.recorder)
        self._open = ExitStack()
        self._agreement = Agreement()
        self._stand_ins: list[str] = []
        self._signals = Signals()

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

    def _among_workers(self) -> tuple[Path | None, str]:
        """Where workers of this run tell each other how far they are, None without workers; and the name of this one."""
        if self.workerinput is None:
            return None, ""
        return self.folders.pace, str(self.workerinput["workerid"])

    def start(self, module: nn.Module | None = None) -> Run:
        """The run of this process, with everything loaded. Raises `AuditError`."""
        if self.run is None or (module is not None and self.run.inputs.module is not module):
            from backdoor_audit.run.run import Run
            from backdoor_audit.store import Store

            worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
            self.run = Run(
                self.options,
                Store(self.folders.store),
                self.suite,
                module=module,
                began=self.budget_began,
                worker=int(worker) if worker.isdigit() else 0,
            )
            with warnings.catch_warnings(), self._gradients():
                warnings.simplefilter("default")  # a stranger's network may warn, however strict the project is
                self.run.check()
        return self.run

    @cached_property
    def suite(self) -> Suite:
        """What this run asks. Raises `OptionError` for a folder that is no suite."""
        from backdoor_audit.questions.suite import Suite

        return Suite.of(self.options)

    def pytest_configure(self, config: pytest.Config) -> None:
        """Make the folder: one that cannot be written is told now, and not at the end or by pytest-html in a traceback."""
        if self.is_controller and self.collects and not config.option.collectonly:
            try:
                self.recorder.make_folder()
            except OSError as error:
                raise self._unwritable(error) from None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Load model and images before anything else happens, so that a mistake costs seconds and shows as one line."""
        try:
            self._agreement.begin(self.suite)  # whose files are imported before anything of the model runs
            self._open.enter_context(self.pace.watching())
            if not self.is_controller:
                return
            self._signals.end_the_run(supervised=CHANNEL in self.config.stash)
            if self.collects and not self.config.option.collectonly and CHANNEL not in self.config.stash:
                self.recorder.set_aside()
            with self._ended_by_the_model():
                run = self.start()
                self.expected = [item.node_id for item in self.suite.items(run)]
        except AuditError as error:
            self.recorder.put_back()
            raise pytest.UsageError(f"backdoor_audit: {error}") from None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Begin the record: what was asked can be asked, and the first item comes."""
        if self.is_controller and self.collects and not self.config.option.collectonly:
            self._begin_record()
        return (yield)

    def _begin_record(self) -> None:
        with self._signals.waiting():  # an import that is ended half-way would break what is written at the end
            import backdoor_audit.report.html  # noqa: F401
        try:
            self.recorder.open(partial(self.recorder.unfinished, self.run, self.outcomes, self.expected, at_once=True))
        except OSError as error:
            self.recorder.put_back()
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> pytest.UsageError:
        place = printable(place_of(error, Path(self.options.report)))
        return pytest.UsageError(
            f"backdoor_audit: --audit-report: {place} cannot be written ({error.strerror or error}); remove what is in the way, "
            "or give another folder"
        )

    @contextmanager
    def _ended_by_the_model(self) -> Iterator[None]:
        """A block in which the model is loaded and asked for the first time; if its code ends it, the record says so."""
        try:
            yield
        except (KeyboardInterrupt, ModelError) as error:
            if isinstance(error, KeyboardInterrupt):
                if CHANNEL not in self.config.stash:  # else the parent does that
                    self._record_unbegun("the run was interrupted while it loaded")
                raise
            self._end_before_the_first_item(str(error))
        except Exception:
            raise
        except BaseException as error:  # SystemExit, or what pytest raises to skip and to exit
            told = printable(str(error))
            self._end_before_the_first_item(
                f"{type(error).__name__} came out of the model while it was loaded ({told})"
            )

    def _record_unbegun(self, reason: str) -> str:
        """Write the record of a run that ends while it loads; its digest."""
        self.outcomes.errors[RUN] = reason
        with suppress(OSError):
            self.recorder.open()
        self.recorder.finish(None, self.outcomes, self.expected, self.today)
        return self.recorder.write(self.config, int(pytest.ExitCode.TESTS_FAILED))

    def _end_before_the_first_item(self, reason: str) -> NoReturn:
        self._tell_parent(self._record_unbegun(reason))
        pytest.exit(f"backdoor_audit: INCONCLUSIVE: {reason}", returncode=int(pytest.ExitCode.TESTS_FAILED))

    def pytest_report_header(self) -> list[str]:
        """What to know before a long wait."""
        if not self.is_controller or self.run is None or self.config.option.collectonly:
            return []
        return [f"backdoor_audit: {line}" for line in self.run.forewarned()]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep which items there are, for the plan."""
        self.items = [item.nodeid for item in session.items if item.nodeid.startswith(f"{AUDIT}::")]

    @contextmanager
    def working(self, run: Run) -> Iterator[None]:
        """A block of work that may take minutes. Before the first one the terminal says how long all of it takes.

        That is inside an item and after the preconditions: whatever a model does while it is measured is this item's, and a
        model that cannot be judged is not searched.
        """
        with self.pace.shown():
            if self.items and not self.pace.asked and not run.inputs.unmet:
                self.pace.announce(run, self.items)
            yield

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker what the controller knows already."""
        node.workerinput["backdoor_audit_store"] = str(self.folders.store)
        node.workerinput["backdoor_audit_began"] = self.budget_began

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the shipped audits under node ids that read well and can be run again."""
        if self.collects:
            own = list(audit_items(session, self.suite, self.expected or self._names(), self.selected))
            self._stand_ins = stand_ins(own)
            items += own

    def _names(self) -> list[str]:
        """Node ids of a complete run, which a worker asks for itself."""
        return [item.node_id for item in self.suite.items(self.start())]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Nothing that the model's code raises ends more than its item."""
        with contained(item):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Nothing that the model's code raises ends more than its item."""
        with contained(item), self._gradients() if item.nodeid.startswith(f"{AUDIT}::") else nullcontext():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """What the audit's own fixtures compute needs gradients, whatever a fixture of the project has set."""
        with self._gradients() if fixturedef.func.__module__ == FIXTURES else nullcontext():
            return (yield)

    def _gradients(self) -> AbstractContextManager[None]:
        from backdoor_audit.model.surroundings import gradients

        return gradients()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Let what was decided, its pictures, and what was computed since the last report travel with the item's report."""
        report = yield
        if is_audit(item):
            vars(report).update(
                extras=[*getattr(report, "extras", []), *(item.stash.get(EXTRAS, []) if report.when == "call" else [])],
                backdoor_audit={**decided(item), "sections": {}, "told": []},
            )
            if self.run is not None:
                self._add_computed(self.run, report)
        return report

    def _add_computed(self, run: Run, report: pytest.TestReport) -> None:
        """What is new in this process since its last report: all of it with every one would grow with items times classes."""
        carried = vars(report)["backdoor_audit"]
        carried["told"] = run.inputs.store.take_told()
        if report.when != "teardown" and (carried["findings"] or carried["skipped"] is not None):
            carried["sections"] = plain(run.take_sections())

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather what items came to; with workers this runs on the controller as well as in each worker."""
        if self.is_controller:
            self.recorder.name_case(self.config, report, self.run)
            self.outcomes.add(report)
            if not self.recorder.opened and self.outcomes.findings:  # of a test of the project's own
                self._begin_record()
            if self.collects and report.when != "setup":
                self.recorder.unfinished(self.run, self.outcomes, self.expected)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Write the record and its renderings before others write theirs; the exit code follows the record."""
        self._finish(session)
        with self.recorder.page_kept() if self.collects else nullcontext():
            try:
                return (yield)
            except OSError as error:  # of another plugin, such as pytest-html on a full disk
                self.recorder.told.append(f"a plugin could not write what it leaves ({error.strerror or error})")
                self.recorder.unwritten = True
                page = getattr(self.config.option, "htmlpath", None)
                if page:
                    self.config.option.htmlpath = None
                    with suppress(OSError):
                        Path(page).unlink(missing_ok=True)  # cut short
                if session.exitstatus == pytest.ExitCode.OK:
                    session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _finish(self, session: pytest.Session) -> None:
        self._signals.hold()
        if not self.is_controller:
            account = self._agreement.account(self.suite, self.run, self._stand_ins)
            self.config.workeroutput["backdoor_audit_account"] = account  # type: ignore[attr-defined]
            return
        if self.config.option.collectonly:
            return
        self.config.stash[JUDGED] = True
        if session.exitstatus == pytest.ExitCode.USAGE_ERROR and not self.recorder.opened:
            self.recorder.put_back()
            return
        self._compare(self._agreement.account(self.suite, self.run, self._stand_ins), "the process of this run")
        if not (self.collects or self.outcomes.findings or self.outcomes.errors):
            self._tell_parent(None)
            return
        if not self.recorder.opened:
            self._begin_record()
        run = self.start()
        record = self.recorder.finish(run, self.outcomes, self.expected, self.today)
        self.config.stash[REFUSED] = not record.passes_gate
        updated = not self.options.update_baseline or self.recorder.update_baseline(run, self.today)
        if session.exitstatus == pytest.ExitCode.OK and not (updated and record.passes_gate):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.recorder.told += self.outcomes.told
        written = self.recorder.write(self.config, int(session.exitstatus), run)
        self.recorder.unwritten = not (updated and written)
        if not written and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._tell_parent(written)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker has to say at its end; one that died has said nothing, and xdist reports its item."""
        worker = f"worker {node.gateway.id}"
        account = getattr(node, "workeroutput", {}).get("backdoor_audit_account")
        if account is not None:
            self._compare(account, worker)
        elif self.collects or self.outcomes.findings:
            self.outcomes.errors.setdefault(RUN, f"{worker} ended before it told what it had audited")

    def _compare(self, account: Mapping[str, Any], where: str) -> None:
        if reason := self._agreement.objection(account, where):
            self.outcomes.errors[RUN] = reason

    def _tell_parent(self, written: str | None) -> None:
        channel = self.config.stash.get(CHANNEL, None)
        if channel is not None:
            channel.tell(record=written)

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_report_title(self, report: Any) -> None:
        """Name the page after the model."""
        report.title = f"Backdoor audit of {printable(Path(self.options.model).name) or 'a module'}"

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        """Put the verdict at the head of the page."""
        if self.recorder.record is not None:
            from backdoor_audit.report.extras import verdict_banner

            prefix.append(verdict_banner(self.recorder.record))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say so where paths were named and no audit was run."""
        listed = self.collects or self.config.option.collectonly
        if self.recorder.record is None and self.is_controller and not listed:
            terminalreporter.write_line(
                "backdoor_audit: no audit was run: paths were named; add the word audit to run it as well"
            )

    def pytest_unconfigure(self) -> None:
        """Drop the folder that stood in for pytest's cache."""
        self._signals.give_back()
        self._open.close()
        self.folders.drop(had_workers=self.is_controller and self.config.pluginmanager.hasplugin("dsession"))

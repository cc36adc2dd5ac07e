"""What the terminal says at the end: the audit's own section in place of blocks about judged items, and the verdict last."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.evidence import Verdict
from backdoor_audit.plugin.recording import Recorder
from backdoor_audit.plugin.supervision import REFUSED
from backdoor_audit.printable import printable
from backdoor_audit.report.paths import PAGE, RECORD
from backdoor_audit.report.terminal import WIDEST, last_line, summary_lines

_TOLD_BY_PYTEST = ("failed", "skipped")
"""Categories of pytest whose reports get blocks and lines at the end."""


class Closing:
    """Prints the end of a run. pytest's own counts, and blocks about tests that broke, stay as they are."""

    def __init__(self, config: pytest.Config, recorder: Recorder) -> None:
        self.config, self.recorder = config, recorder

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None]:
        """The section of the audit; what it says of judged items pytest does not say once more."""
        with _without_judged(terminalreporter) if self._is_short() else nullcontext():
            yield
        record = self.recorder.record
        if record is None:
            return
        terminalreporter.section("backdoor audit")
        told = [printable(line) for line in self.recorder.told]
        width = terminalreporter._tw.fullwidth - 1 if terminalreporter.isatty else WIDEST
        for line, markup in summary_lines(record, width=width, told=told, page=self._page()):
            terminalreporter.write_line(line, **markup)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Below the last line of pytest, which counts items: the verdict."""
        yield
        terminal = self.config.pluginmanager.getplugin("terminalreporter")
        if self.recorder.record is not None and terminal is not None:
            code = self._exit_code(session)
            line, markup = last_line(self.recorder.record, code, self._beside(code))
            terminal.write_line(line, **markup)

    def _exit_code(self, session: pytest.Session) -> int:
        """What the process ends with: 0 of another plugin passes no record that refuses the model."""
        code = int(session.exitstatus)
        refused = code == pytest.ExitCode.OK and self.config.stash.get(REFUSED, False)
        return int(pytest.ExitCode.TESTS_FAILED) if refused else code

    def _beside(self, code: int) -> str:
        """What fails a run beside its audit, as far as that can be told."""
        if code == pytest.ExitCode.INTERRUPTED:
            return "an interrupt"
        if self.recorder.unwritten:
            return "what could not be written, as told above"
        if getattr(self.config.option, "cov_fail_under", None):
            return "pytest-cov (--cov-fail-under; an audit covers no code of the project: add --no-cov) or another test or plugin"
        return "another test or plugin, which tells above what is wrong"

    def _page(self) -> str:
        """The file to open: the page, or the record where there is no page."""
        written = {file.name: file for file in self.recorder.written}
        return printable(str(written.get(PAGE, written.get(RECORD, Path())) or "")) if written else ""

    def _is_short(self) -> bool:
        """Whether nobody asked for what pytest itself says of every item: by ``-v``, ``--tb``, or ``-r`` on the command line."""
        typed = map(str, self.config.invocation_params.args)
        option = self.config.option
        return option.verbose <= 0 and option.tbstyle == "auto" and not any(word.startswith("-r") for word in typed)


@contextmanager
def _without_judged(terminalreporter: Any) -> Iterator[None]:
    """A block in which the terminal knows nothing of the items that the audit itself failed or skipped."""
    kept = {name: terminalreporter.stats[name] for name in _TOLD_BY_PYTEST if name in terminalreporter.stats}
    try:
        for name, reports in kept.items():
            terminalreporter.stats[name] = [report for report in reports if not _is_judged(report)]
        yield
    finally:
        terminalreporter.stats.update(kept)


def _is_judged(report: Any) -> bool:
    """Whether the audit's finding, or its own skip, is what the item ended by."""
    decided = getattr(report, "backdoor_audit", None)
    if not decided or (report.failed and report.when != "call"):
        return False
    return decided["skipped"] is not None or any(
        found["verdict"] != Verdict.PASS.value for found in decided["findings"]
    )

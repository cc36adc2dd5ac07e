"""The record of a run on disk: there from the first item on, inconclusive until the last, then final."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.junitxml import xml_key  # pytest has no public way to say something about a suite at its end

from backdoor_audit.errors import AuditError
from backdoor_audit.evidence import Record
from backdoor_audit.files import UnreadableError, abandoned, read_bytes, refuse_special
from backdoor_audit.installed import RENDERING
from backdoor_audit.item import Item
from backdoor_audit.options import AuditOptions
from backdoor_audit.plugin.outcomes import Outcomes
from backdoor_audit.presentable import plain
from backdoor_audit.report.paths import RECORD
from backdoor_audit.report.picture_files import FILES as PICTURE_FILES
from backdoor_audit.report.picture_files import FOLDER as PICTURES

if TYPE_CHECKING:
    from backdoor_audit.questions.suite import Suite
    from backdoor_audit.run.run import Run

RUN = "audit"  # what an error is filed under that is not one item's
EARLIER = ".audit.earlier.json"
"""The record of the earlier run, until this one has its own."""
HTML = "report.html"
TRIGGER_FILE = re.compile(r"triggers/[^/\\]+\.safetensors")
UNFINISHED = "the run had not ended when this was written; run it again: finished work is kept"

_SHARE_OF_TIME = 0.02  # that writing unfinished records may take
_LEAST_PAUSE = 0.5  # seconds between two of them


class Recorder:
    """Writes what is known of a run into its report folder. ``written`` and ``told`` are for the summary at the end."""

    def __init__(self, options: AuditOptions, others: Sequence[Path] = ()) -> None:
        self.options, self.others = options, others
        self.folder = Path(options.report).absolute()  # a model's code may change the working folder
        self.record: Record | None = None
        self.written: list[Path] = []
        self.told: list[str] = []
        self.opened = False
        self.unwritten = False  # whether something that the run was to leave is not there
        self._aside = self.folder / EARLIER
        self._moved = False
        self._since = time.time()
        self._began = time.perf_counter()
        self._next = 0.0

    def set_aside(self) -> None:
        """Take the record of an earlier run away: until this one has its own, nobody shall read that for its verdict.

        What is no file (a pipe, a device) is not put back.
        """
        record = self.folder / RECORD
        try:
            refuse_special(record)
        except UnreadableError:
            with suppress(OSError):
                record.unlink()
        else:
            with suppress(OSError):
                record.replace(self._aside)
                self._moved = True

    def put_back(self) -> None:
        """Put the record back that was set aside here: this run could not begin. A folder that was made for it goes."""
        if self._moved and not os.path.lexists(self.folder / RECORD):
            with suppress(OSError):
                self._aside.replace(self.folder / RECORD)
        with suppress(OSError):
            self.folder.rmdir()

    def make_folder(self) -> None:
        """Make the folder, and find out whether it can be written to. Raises `OSError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass

    def open(self, begin: Callable[[], None] = lambda: None) -> None:
        """Make the folder and remove what an earlier run left there: another model's verdict must not stay. Raises `OSError`.

        That of an earlier run stays if ``begin``, which writes the first record of this one, raises.
        Only files that a run writes itself go; pictures and triggers only where there is a record of an earlier one. So do
        ``others``, which other plugins write at the end of a run: one that is killed would leave those of an earlier one.
        """
        from backdoor_audit.report.renderers import FILES

        self.set_aside()
        earlier = b""
        with suppress(UnreadableError):
            earlier = read_bytes(self._aside)
        self.folder.mkdir(parents=True, exist_ok=True)
        begin()
        pictures = tuple(f"{PICTURES}/{name}" for name in PICTURE_FILES) if earlier else ()
        names = (*(name for name in FILES if name != RECORD), *rendered_by_others(earlier), HTML, *pictures)
        for file in (*map(self.folder.joinpath, names), *self._triggers(earlier), *abandoned(self.folder), self._aside):
            file.unlink(missing_ok=True)
        for file in filter(os.path.isfile, self.others):  # no device
            with suppress(OSError):
                file.unlink()
        self.opened = True

    @contextmanager
    def page_kept(self) -> Iterator[None]:
        """A block in which pytest-html writes its page: that of an earlier run stays if this one has no record."""
        page, aside = self.folder / HTML, self.folder / f".{HTML}"
        kept = False
        if not self.opened:
            with suppress(OSError):
                page.replace(aside)
                kept = True
        try:
            yield
        finally:
            if not self.opened:
                with suppress(OSError):
                    page.unlink(missing_ok=True)
                    if kept:
                        aside.replace(page)
                    else:
                        self.folder.rmdir()

    def _triggers(self, earlier: bytes) -> Iterator[Path]:
        """Files of triggers that the earlier record names, but for those that were written since this run began."""
        for file in map(self.folder.joinpath, triggers_in(earlier)):
            with suppress(OSError):
                if file.stat().st_mtime < self._since:
                    yield file

    def unfinished(
        self, run: Run | None, outcomes: Outcomes, expected: Sequence[str], *, at_once: bool = False
    ) -> None:
        """Write what is known so far as an inconclusive record, now and then; a kill leaves that. Raises `OSError` if at once."""
        began = time.perf_counter()
        if not at_once and began < self._next:
            return
        try:
            self._built(run, outcomes, expected, {RUN: UNFINISHED}).write(self.folder / RECORD)
        except OSError:  # the end of the run will tell, if it still holds then
            if at_once:
                raise
        took = time.perf_counter() - began
        self._next = time.perf_counter() + max(_LEAST_PAUSE, took / _SHARE_OF_TIME)

    def name_case(self, config: pytest.Config, report: pytest.TestReport, run: Run | None) -> None:
        """Give the item's case in the JUnit file the names that pages group it by, before pytest opens it."""
        from backdoor_audit.report.junit import case_names

        junit = config.stash.get(xml_key, None)
        names = case_names(Item.parse(report.nodeid), run.class_name) if junit is not None and run is not None else None
        if junit is not None and names is not None:
            case = junit.node_reporter(report)
            case.add_attribute("classname", names[0])
            case.add_attribute("name", names[1])

    def finish(self, run: Run | None, outcomes: Outcomes, expected: Sequence[str], today: date) -> Record:
        """The final record; with the comparison with its baseline if it has one."""
        from backdoor_audit.questions.regression import beside_baseline

        record = self._built(run, outcomes, expected, {})
        if run is not None:
            try:
                record = beside_baseline(run, record, today)
            except AuditError as error:
                record = replace(record, errors={**record.errors, RUN: str(error)})
        self.record = record
        return record

    def update_baseline(self, run: Run, today: date) -> bool:
        """Whether the baseline was written from the record; the summary tells what came of it."""
        from backdoor_audit.questions.regression import write_baseline

        assert self.record is not None
        try:
            self.told += write_baseline(run, self.record, today)
        except (AuditError, OSError) as error:
            self.told.append(str(error))
            return False
        return True

    def write(self, config: pytest.Config | None, exit_code: int, run: Run | None = None) -> str:
        """Write the record and its renderings; the SHA-256 of the record's file, empty if that could not be written.

        A ``run`` has a catalogue of renderers; without one they are the shipped ones.
        """
        from backdoor_audit.report.files import write_files
        from backdoor_audit.report.junit import suite_properties
        from backdoor_audit.report.markdown import append_step_summary
        from backdoor_audit.report.renderers import RENDERERS

        assert self.record is not None
        junit = config.stash.get(xml_key, None) if config is not None else None
        if junit is not None:
            for name, value in suite_properties(self.record):
                junit.add_global_property(name, str(value))
        try:
            renderers = (*RENDERERS, *(run.inputs.catalogue.renderers if run is not None else ()))
            written, failed = write_files(self.record, self.folder, exit_code=exit_code, renderers=renderers)
        except OSError as error:
            self.told.append(
                f"--audit-report: {place_of(error, Path(self.options.report))} cannot be written ({error.strerror or error}): "
                "no evidence is left"
            )
            return ""
        self.written = [Path(self.options.report) / file.name for file in written]
        self.told += failed
        try:
            append_step_summary(self.record, os.environ)
        except OSError as error:
            self.told.append(f"GITHUB_STEP_SUMMARY cannot be written ({error})")
        return digest(self.folder / RECORD)

    def _built(self, run: Run | None, outcomes: Outcomes, expected: Sequence[str], errors: dict[str, str]) -> Record:
        from backdoor_audit.questions.record import build_record
        from backdoor_audit.run.settings import settings_of

        sections, suite = dict(outcomes.sections), self._suite(run)
        if run is not None and (run.inputs.module is not None or self.options.model):
            sections = {
                "subject": plain(run.inputs.summary()),
                "environment": plain(run.inputs.environment()),
                **sections,
            }
        return build_record(
            sections,
            settings_of(self.options, suite.limits),
            questions=suite.to_json(),
            findings=outcomes.findings,
            skipped=outcomes.skipped,
            errors={**outcomes.errors, **errors},
            expected=list(expected),
            seconds=time.perf_counter() - self._began,
        )

    def _suite(self, run: Run | None) -> Suite:
        """What was asked; of a run that could not begin what it would have asked, as far as that can be read."""
        from backdoor_audit.questions.suite import Suite, shipped, suite_of

        if run is not None:
            return suite_of(run)
        try:
            return Suite.of(self.options)
        except AuditError:
            return shipped()


def triggers_in(record: bytes) -> list[str]:
    """The files of triggers that a record names."""
    try:
        findings = json.loads(record or b"{}")["findings"]
        named = [name for found in findings for name in found["artifacts"].values()]
        return [name for name in named if TRIGGER_FILE.fullmatch(name)]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []


def rendered_by_others(record: bytes) -> list[str]:
    """The files that renderers of other packages left beside a record: those packages need not be installed any more."""
    try:
        plugins = json.loads(record or b"{}")["environment"]["plugins"]
        return [entry["file"] for entry in plugins if RENDERING.fullmatch(entry["file"])]
    except (ValueError, TypeError, LookupError, RecursionError):
        return []  # an older record, or none


def place_of(error: OSError, folder: Path) -> str:
    """What could not be written: the file or folder that the error names, or else the folder of the report."""
    named = str(error.filename2 or error.filename or folder)
    return str(folder) if named.endswith(".partial") else named


def digest(file: Path) -> str:
    """SHA-256 of a file's content; empty for one that is not there, or no file."""
    try:
        return hashlib.sha256(read_bytes(file)).hexdigest()
    except UnreadableError:
        return ""

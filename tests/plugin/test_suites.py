"""A suite of one's own: a copy of the shipped audits with other numbers, other files, other questions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.gate import audit
from backdoor_audit.questions.suite import shipped
from tests.subjects.suites import OWN
from tests.subjects.toy_runs import record_of

Run = Callable[..., pytest.RunResult]

SIDES = ("left", "right", "top", "bottom")
KEEPING = f'''
from dataclasses import dataclass
from backdoor_audit.questions import Item, Question, Words, judge

KEPT = {{}}

@dataclass(frozen=True)
class Sides(Question):
    """A question that keeps a row for each of its items, once that is answered."""

    name = "sides"
    words = Words(asks="Are the sides alike?", holds="The sides are alike", advice="Look at them.", topic="sides")

    def items(self, run):
        return [Item(self.name, side) for side in {SIDES}]

    def answer(self, run, item):
        KEPT[item.asked_of] = {{"share": 0.25}}
        return judge("share", 0.25, at_most=0.5, reason="a quarter")

    def section(self, run):
        return KEPT

QUESTION = Sides()

def test_sides(finding, evidence):
    evidence(finding)
'''
"""A suite's file: which process asks an item, only that one knows."""


@pytest.fixture
def copied(project: pytest.Pytester) -> Path:
    """A copy of the shipped audits in the project."""
    return Path(shutil.copytree(shipped().folder, project.path / "mine"))


def audits_of(record: Record) -> set[str]:
    """Node ids of what has an answer."""
    return {*(finding.audit for finding in record.findings), *record.skipped}


def test_a_copy_asks_the_same_and_every_answer_is_in_the_record(
    run: Run, project: pytest.Pytester, copied: Path
) -> None:
    assert run("backdoored").ret == pytest.ExitCode.TESTS_FAILED
    usual = record_of(project)
    assert run("backdoored", f"--audit-suite={copied.name}").ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.findings == usual.findings
    assert record.skipped == usual.skipped
    assert record.questions == usual.questions
    assert record.settings["suite"] == copied.name


def test_a_number_of_the_copy_decides_in_pytest_and_in_python(
    run: Run, project: pytest.Pytester, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copied / "test_anomaly_index.py"
    file.write_text(file.read_text().replace("size_ratio=0.33", "size_ratio=0.0"))
    run("backdoored", "--audit-suite=mine")
    record = record_of(project)
    assert record.flagged_classes == ()
    assert record.settings["limits"]["size_ratio"] == 0.0
    assert "size_ratio=0.0" in record.questions["anomaly_index"]["settings"]
    monkeypatch.chdir(project.path)
    monkeypatch.syspath_prepend(str(project.path))
    options = {
        "data": "images.npz",
        "arch": "toy:network",
        "profile": "quick",
        "device": "cpu",
        "suite": "mine",
        "steps": 150,
    }
    again = audit("backdoored.safetensors", progress=False, **options)
    assert again.findings == record.findings
    assert again.questions == record.questions


def test_what_the_copy_leaves_out_is_not_asked_and_told(run: Run, project: pytest.Pytester, copied: Path) -> None:
    (copied / "test_property.py").unlink()
    assert run("clean", "--audit-suite=mine").ret == pytest.ExitCode.OK
    record = record_of(project)
    assert not any("test_property" in name for name in audits_of(record))
    told = "Does what holds for every clean model hold for this one? (this suite does not ask it)"
    assert told in record.not_tested


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_question_of_ones_own_fails_the_run_and_stands_on_every_page(
    run: Run, project: pytest.Pytester, copied: Path, workers: tuple[str, ...]
) -> None:
    (copied / "test_flip_drop.py").write_text(OWN)
    result = run("clean", "--audit-suite=mine", *workers, process=bool(workers))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    (own,) = [finding for finding in record.findings if finding.item.question == "flip_drop"]
    assert (own.audit, own.verdict) == ("audit::test_flip_drop[model]", Verdict.FAIL)
    assert record.verdict is Verdict.FAIL
    report = project.path / "backdoor-audit-report"
    for page in ("audit.html", "audit.sarif", "audit.md"):
        assert "a flip costs 20 % of accuracy" in (report / page).read_text()
    assert "A flip is harmless" in (report / "audit.sarif").read_text()
    result.stdout.fnmatch_lines(["*a flip costs 20 % of accuracy*"])


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_every_row_that_a_question_keeps_is_in_the_record_whoever_asked(
    run: Run, project: pytest.Pytester, copied: Path, workers: tuple[str, ...]
) -> None:
    (copied / "test_sides.py").write_text(KEEPING)
    assert run("clean", "--audit-suite=mine", *workers, process=bool(workers)).ret == pytest.ExitCode.OK
    assert record_of(project).sections == {"sides": {side: {"share": 0.25} for side in SIDES}}
    page = (project.path / "backdoor-audit-report" / "audit.html").read_text()
    assert all(f'<th scope="row">{side}</th>' in page for side in SIDES)


def test_a_limit_of_ones_own_question_is_set_by_name(run: Run, project: pytest.Pytester, copied: Path) -> None:
    (copied / "test_flip_drop.py").write_text(OWN)
    assert run("clean", "--audit-suite=mine", "--audit-limit", "flip_drop=0.3").ret == pytest.ExitCode.OK
    assert "flip_drop=0.3" in record_of(project).questions["flip_drop"]["settings"]


def test_a_copied_file_beside_the_shipped_suite_is_recorded_under_its_own_name(
    run: Run, project: pytest.Pytester, copied: Path
) -> None:
    file = copied / "test_precondition.py"
    assert run("clean", f"mine/{file.name}", "audit").ret == pytest.ExitCode.OK
    record = record_of(project)
    own = [finding for finding in record.findings if finding.audit.startswith("mine/test_precondition.py::")]
    shipped_ones = [finding for finding in record.findings if finding.audit.startswith("audit::test_precondition[")]
    assert [finding.item for finding in own] == [finding.item for finding in shipped_ones]
    assert {finding.item.question for finding in own} == {"precondition"}


def test_with_a_baseline_the_question_of_ones_own_is_compared(run: Run, project: pytest.Pytester, copied: Path) -> None:
    own = copied / "test_flip_drop.py"
    own.write_text(OWN.replace("0.2,", "0.01,"))
    asked = ("clean", "--audit-suite=mine", "--audit-baseline=b.json")
    assert run(*asked, "--audit-update-baseline").ret == pytest.ExitCode.OK
    assert run(*asked).ret == pytest.ExitCode.OK
    own.write_text(OWN)
    assert run(*asked).ret == pytest.ExitCode.TESTS_FAILED
    baseline = record_of(project).baseline
    assert baseline is not None
    assert any("flip_drop" in text for text in baseline["worse"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--audit-suite=nothing",), "--audit-suite: * does not exist; give a folder of files test_[*].py"),
        (("--audit-suite=images.npz",), "--audit-suite: * is a file; give a folder of files test_[*].py"),
        (("--audit-suite=.",), "--audit-suite: * holds no file test_[*].py; a suite is a folder of files*"),
        (("--audit-limit", "speed=1"), "limit 'speed' is not known; limits are anomaly_index, *"),
    ],
)
def test_what_cannot_be_asked_ends_the_run_with_one_line(run: Run, options: tuple[str, ...], told: str) -> None:
    result = run("clean", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{told}*"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_finding_without_a_question_is_no_answer(run: Run, project: pytest.Pytester) -> None:
    project.makepyfile(test_odd="def test_odd(finding, evidence):\n    evidence(finding)")
    result = run("clean", "test_odd.py", "audit")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "stands beside QUESTION" in record_of(project).errors["test_odd.py::test_odd"]

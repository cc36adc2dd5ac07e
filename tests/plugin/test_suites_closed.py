"""No suite ends a run in exit code 0 without answers to what the record says was asked, or without a question about the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.questions.suite import shipped
from tests.subjects.suites import OWN
from tests.subjects.toy_runs import Run, record_of
from tests.subjects.wild import LOADING, wild

KEPT = OWN.replace("0.2,", "0.01,")  # the limit holds


@pytest.fixture
def mine(project: pytest.Pytester) -> Path:
    """A suite of the preconditions alone, which says nothing about the model."""
    folder = project.path / "mine"
    folder.mkdir()
    shutil.copy(shipped().folder / "test_precondition.py", folder)
    return folder


@pytest.mark.parametrize("more", [(), ("--audit-inconclusive=allow",)])
def test_a_suite_that_asks_nothing_about_the_model_passes_none(
    run: Run, project: pytest.Pytester, mine: Path, more: tuple[str, ...]
) -> None:
    result = run("clean", "--audit-suite=mine", *more)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert {finding.verdict for finding in record.findings} == {Verdict.PASS}
    assert any("no question of this suite is about it" in line for line in record.not_tested)


def test_nor_beside_a_baseline(run: Run, project: pytest.Pytester, mine: Path) -> None:
    asked = ("clean", "--audit-suite=mine", "--audit-baseline=b.json")
    run(*asked, "--audit-update-baseline")
    assert run(*asked).ret == pytest.ExitCode.TESTS_FAILED


def test_a_remedy_of_ones_own_is_no_question_about_the_model(run: Run, project: pytest.Pytester, mine: Path) -> None:
    remedy = KEPT.replace('topic="flips"', 'topic="flips", about=About.REMEDY').replace(
        "import Item", "import About, Item"
    )
    (mine / "test_flip_drop.py").write_text(remedy)
    assert run("clean", "--audit-suite=mine").ret == pytest.ExitCode.TESTS_FAILED
    (mine / "test_flip_drop.py").write_text(KEPT)
    assert run("clean", "--audit-suite=mine").ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("    evidence(finding)", "    pass", "ended without an answer"),
        (
            "def test_flip_drop(finding, evidence)",
            "import pytest\n@pytest.mark.skip\ndef test_flip_drop(finding, evidence)",
            "skip",
        ),
        ("return judge(", "return str(", "the answer is "),
        ("    evidence(finding)", "    raise SystemExit(0)", "SystemExit"),
        ("def answer(self, run, item):", "def answer(self, run, item):\n        raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_test_without_an_answer_is_an_error(
    run: Run, project: pytest.Pytester, mine: Path, old: str, new: str, told: str
) -> None:
    text = KEPT.replace(old, new).replace('str("flip_drop", 0.01, at_most=self.flip_drop, reason=', "str(")
    (mine / "test_flip_drop.py").write_text(text)
    assert run("clean", "--audit-suite=mine").ret == pytest.ExitCode.TESTS_FAILED
    assert told in record_of(project).errors["audit::test_flip_drop[model]"]


def test_an_xfail_does_not_take_a_failure_away(run: Run, project: pytest.Pytester, mine: Path) -> None:
    text = OWN.replace("def test_flip_drop", "import pytest\n@pytest.mark.xfail\ndef test_flip_drop")
    (mine / "test_flip_drop.py").write_text(text)
    assert run("clean", "--audit-suite=mine").ret == pytest.ExitCode.TESTS_FAILED
    assert record_of(project).verdict is Verdict.FAIL


def test_an_item_that_is_not_run_under_its_name_is_told(run: Run, project: pytest.Pytester, mine: Path) -> None:
    own = "evidence):\n    from backdoor_audit.questions import judge\n    finding = judge('x', 0, at_most=1, reason='y')\n"
    (mine / "test_flip_drop.py").write_text(KEPT.replace("finding, evidence):\n", own))
    assert run("clean", "--audit-suite=mine").ret == pytest.ExitCode.TESTS_FAILED
    assert record_of(project).not_run == ["audit::test_flip_drop[model]"]


def test_one_function_may_submit_for_several_questions(run: Run, project: pytest.Pytester, mine: Path) -> None:
    second = (
        "\n\nclass Second(FlipDrop):\n    name = 'second'\n\n\nQUESTIONS = (Second(),)\ntest_second = test_flip_drop\n"
    )
    (mine / "test_flip_drop.py").write_text(KEPT + second)
    assert run("clean", "--audit-suite=mine").ret == pytest.ExitCode.OK
    answered = {finding.item.question for finding in record_of(project).findings}
    assert answered == {"precondition", "flip_drop", "second"}


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ("\nimport pytest\npytest.skip('no', allow_module_level=True)\n", "cannot be imported (Skipped: no)"),
        ("\nraise SystemExit(0)\n", "cannot be imported (SystemExit: 0)"),
        ("\nQUESTION = FlipDrop(flip_drop=float('nan'))\n", "limit flip_drop must be a number of at least 0, got nan"),
    ],
)
def test_a_file_that_cannot_be_asked_ends_the_run_with_one_line(run: Run, mine: Path, added: str, told: str) -> None:
    (mine / "test_flip_drop.py").write_text(KEPT + added)
    result = run("clean", "--audit-suite=mine")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert told in result.stderr.str()
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def errors_of(record: Record) -> str:
    """What the run as a whole is filed under."""
    return record.errors.get("audit", "")


def test_a_worker_that_asks_by_another_number_decides_nothing(run: Run, project: pytest.Pytester, mine: Path) -> None:
    number = "0.9 if 'PYTEST_XDIST_WORKER' in os.environ else 0.05"
    text = OWN.replace("QUESTION = FlipDrop()", f"import os\nQUESTION = FlipDrop({number})")
    (mine / "test_flip_drop.py").write_text(text)
    result = run("clean", "--audit-suite=mine", "-n1", process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "flip_drop changed; leave the files of a suite alone" in errors_of(record_of(project))


def test_a_model_that_changes_the_suite_in_the_process_is_told(run: Run, project: pytest.Pytester, mine: Path) -> None:
    (mine / "test_flip_drop.py").write_text(OWN)
    for act, told in (
        ("object.__setattr__(module.QUESTION, 'flip_drop', 0.9)", "flip_drop changed"),
        ("setattr(module.FlipDrop, 'answer', lambda *_: None)", "somebody replaced _backdoor_audit_suite_"),
    ):
        every = (
            "for module in list(sys.modules.values()) if '_backdoor_audit_suite_' in getattr(module, '__name__', '')"
        )
        base = wild(project, f"[{act} {every} and hasattr(module, 'FlipDrop')]", LOADING)
        assert run("clean", "--audit-suite=mine", base=base).ret == pytest.ExitCode.TESTS_FAILED
        assert told in errors_of(record_of(project))


def test_a_suite_that_is_gone_when_items_are_collected_leaves_them_not_run(
    run: Run, project: pytest.Pytester, mine: Path
) -> None:
    (mine / "test_flip_drop.py").write_text(KEPT)
    base = wild(project, f"os.path.exists({str(mine)!r}) and __import__('shutil').rmtree({str(mine)!r})", LOADING)
    assert run("clean", "--audit-suite=mine", base=base).ret != pytest.ExitCode.OK
    assert "audit::test_flip_drop[model]" in record_of(project).not_run


def test_a_suite_in_the_projects_file_is_found_from_a_folder_below(
    project: pytest.Pytester, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine / "test_flip_drop.py").write_text(KEPT)
    (project.path / "pyproject.toml").write_text('[tool.backdoor_audit]\nsuite = "mine"\n')
    below = project.path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    base = ("--data=../images.npz", "--arch=toy:network", "--audit-steps=150", "--device=cpu", "--audit-profile=quick")
    result = project.runpytest_inprocess("--model=../clean.safetensors", *base)
    assert result.ret == pytest.ExitCode.OK
    found = next(project.path.rglob("audit.json"))
    assert set(Record.read(found).questions) == {"precondition", "flip_drop"}

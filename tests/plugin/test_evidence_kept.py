"""What an earlier run left, and what this one was given, is there after it: only a new record takes the place of an old one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from backdoor_audit.plugin.session import AuditSession
from tests.subjects.toy_runs import Run, record_of
from tests.subjects.wild import CHECKING, LOADING, wild

REPORT = "backdoor-audit-report"
CHECKS = "audit::test_precondition"
OTHERS = ("--data=images.npz", "--arch=toy:network", "--device=cpu", "--audit-profile=quick")
TABLE = "\n".join(
    (
        "[tool.backdoor_audit]",
        'model = "clean.safetensors"',
        'data = "images.npz"',
        'arch = "toy:network"',
        'device = "cpu"',
        'profile = "quick"',
    )
)


def evidence(project: pytest.Pytester) -> dict[str, bytes]:
    """Every file of the report, hidden ones as well."""
    folder = project.path / REPORT
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("process", [False, True])
def test_tests_of_the_projects_own_leave_the_evidence_of_an_audit(
    project: pytest.Pytester, run: Run, process: bool
) -> None:
    project.makepyprojecttoml(TABLE)
    project.makepyfile(test_own="def test_own(): pass")
    run(None, CHECKS)
    before = evidence(project)
    assert {"audit.json", "audit.html", "audit.md", "audit.sarif", "report.html"} <= before.keys()
    assert run(None, "test_own.py", process=process).ret == pytest.ExitCode.OK
    assert evidence(project) == before


def test_tests_of_the_projects_own_that_die_leave_the_evidence_of_an_audit(project: pytest.Pytester, run: Run) -> None:
    project.makepyprojecttoml(TABLE)
    project.makepyfile(test_own="import os\ndef test_own(): os._exit(0)")
    run(None, CHECKS)
    before = evidence(project)
    result = run(None, "test_own.py", process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stderr.fnmatch_lines(["*the process that ran the tests ended by itself with exit code 0; no audit was in*"])
    assert evidence(project) == before


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("wrong", [("test_nothere.py", "audit"), ("-k", "a b ("), ("--arch=toy:missing",)])
def test_wrong_usage_leaves_all_the_evidence_of_an_audit(
    project: pytest.Pytester, run: Run, wrong: tuple[str, ...], process: bool
) -> None:
    run("clean", CHECKS)
    before = evidence(project)
    assert run("clean", *wrong, process=process).ret == pytest.ExitCode.USAGE_ERROR
    assert evidence(project) == before


@pytest.mark.parametrize("process", [False, True])
def test_a_disk_that_is_full_at_the_start_takes_no_evidence_of_an_audit_away(
    project: pytest.Pytester, run: Run, process: bool
) -> None:
    run("clean", CHECKS)
    before = evidence(project)
    project.makeconftest(
        """
        import errno
        from pathlib import Path

        begin, write = Path.open, Path.write_text

        def full(path):
            if "backdoor-audit-report" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

        def write_text(path, *arguments, **options):
            full(path)
            return write(path, *arguments, **options)

        def opened(path, mode="r", *arguments, **options):  # as pytest-html writes its page
            if "w" in mode and "backdoor-audit-report" in str(path):
                begin(path, mode, *arguments, **options).close()
                full(path)
            return begin(path, mode, *arguments, **options)

        def pytest_configure():
            Path.open, Path.write_text = opened, write_text

        def pytest_unconfigure():
            Path.open, Path.write_text = begin, write
        """
    )
    result = run("clean", process=process)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*backdoor-audit-report cannot be written (No space left on device)*"])
    assert evidence(project) == before


def test_wrong_usage_leaves_no_folder_where_there_was_none(project: pytest.Pytester, run: Run) -> None:
    assert run("clean", "test_nothere.py", "audit", process=True).ret == pytest.ExitCode.USAGE_ERROR
    assert not (project.path / REPORT).exists()


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("--model", "triggers/clean.safetensors"),
        ("--audit-trigger", "triggers/patch_scan-class_3.safetensors"),
        ("--audit-twins", "triggers/twins.safetensors"),
        ("--baseline", "audit.json"),
        ("--baseline", "audit.md"),
        ("--data", "report.html"),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_an_input_that_a_run_would_write_over_is_refused_and_kept(
    project: pytest.Pytester, run: Run, option: str, place: str, linked: bool
) -> None:
    file = project.path / REPORT / place
    file.parent.mkdir(parents=True)
    shutil.copy(project.path / "clean.safetensors", file)
    given = file
    if linked:
        given = project.path / "link.safetensors"
        given.symlink_to(file)
    result = run("clean" if option != "--model" else None, *OTHERS, f"{option}={given}", process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is a file that this run writes itself; copy it to another place, or give another*"])
    assert file.read_bytes() == (project.path / "clean.safetensors").read_bytes()


@pytest.mark.parametrize("option", ["--junitxml", "--log-file", "--html"])
def test_what_another_plugin_writes_does_not_take_the_place_of_the_evidence(
    project: pytest.Pytester, run: Run, option: str
) -> None:
    result = run("clean", f"{option}={REPORT}/audit.json", CHECKS, process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"*{option}: {REPORT}/audit.json is a file that this run writes itself; write that to another place*"]
    )


@pytest.mark.parametrize("option", ["--junitxml", "--log-file", "--html"])
def test_what_another_plugin_writes_does_not_take_the_place_of_what_is_audited(
    project: pytest.Pytester, run: Run, option: str
) -> None:
    before = (project.path / "clean.safetensors").read_bytes()
    result = run("clean", f"{option}=clean.safetensors", CHECKS, process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option}: clean.safetensors is read by this run; write that to another place*"])
    assert (project.path / "clean.safetensors").read_bytes() == before


@pytest.mark.parametrize("after", [LOADING, CHECKING])
def test_a_run_that_is_killed_leaves_no_report_of_another_plugin_from_the_run_before(
    project: pytest.Pytester, run: Run, after: int
) -> None:
    given = ("--junitxml=own/junit.xml", "--html=own.html")
    assert run("clean", *given, process=True).ret == pytest.ExitCode.OK
    assert 'verdict" value="pass"' in (project.path / "own" / "junit.xml").read_text()
    assert run("clean", *given, base=wild(project, "os._exit(0)", after), process=True).ret
    assert not (project.path / "own" / "junit.xml").exists()
    assert not (project.path / "own.html").exists()


def test_wrong_usage_leaves_the_reports_of_other_plugins(project: pytest.Pytester, run: Run) -> None:
    (project.path / "junit.xml").write_text("of a run before")
    result = run("clean", "--arch=toy:missing", "--junitxml=junit.xml", process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (project.path / "junit.xml").exists()


def test_images_in_the_folder_of_the_evidence_itself_are_read(project: pytest.Pytester, run: Run) -> None:
    (project.path / REPORT).mkdir()
    result = run("clean", f"--data={REPORT}", CHECKS, process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no class folders*"])


def test_a_model_beside_the_evidence_that_no_run_writes_is_audited(project: pytest.Pytester, run: Run) -> None:
    shutil.copy(project.path / "clean.safetensors", project.path / "audit.safetensors")
    result = run(None, "--model=audit.safetensors", *OTHERS, "--report=.", CHECKS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED  # a part of the audit passes nothing
    assert record_of(project, ".").subject["model"] == "audit.safetensors"


def test_a_record_that_a_killed_run_had_set_aside_does_not_come_back(project: pytest.Pytester, run: Run) -> None:
    run("clean", CHECKS)
    report = project.path / REPORT
    (report / "audit.json").rename(report / ".audit.earlier.json")
    assert run("clean", "--arch=toy:missing", process=True).ret == pytest.ExitCode.USAGE_ERROR
    assert not (report / "audit.json").exists()
    run("clean", CHECKS)
    assert not (report / ".audit.earlier.json").exists()


def test_a_run_that_is_interrupted_while_it_loads_leaves_an_inconclusive_record(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("clean", CHECKS)

    def interrupted(_session: AuditSession) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AuditSession, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("clean", CHECKS)
    assert "the run was interrupted while it loaded" in record_of(project).errors["audit"]


def test_files_of_the_users_own_beside_the_evidence_are_kept(project: pytest.Pytester, run: Run) -> None:
    own = [Path("triggers/mine.safetensors"), Path("pictures/0.png"), Path("pictures/mine.png")]
    run("backdoored")
    for file in own:
        (project.path / REPORT / file).parent.mkdir(exist_ok=True)
        (project.path / REPORT / file).write_bytes(b"mine")
    found = set(evidence(project))
    assert any(name.startswith("triggers/") and name != "triggers/mine.safetensors" for name in found)
    run("clean", CHECKS)
    left = {name for name in evidence(project) if os.sep in name}
    assert left == {str(file) for file in own}


def test_pictures_of_a_folder_without_a_record_are_kept(project: pytest.Pytester, run: Run) -> None:
    pictures = project.mkdir("pictures")
    (pictures / "clean.png").write_bytes(b"mine")
    run("clean", CHECKS, "--report=.")
    assert (pictures / "clean.png").read_bytes() == b"mine"

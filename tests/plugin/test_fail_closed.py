"""Exit code 0 means one thing: a whole record exists, the audit decided every item in it, and its verdict is pass."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.options import AuditOptions
from backdoor_audit.plugin import supervision
from backdoor_audit.plugin.recording import Recorder, digest
from backdoor_audit.run.preconditions import PRECONDITIONS
from tests.subjects.toy_runs import BASE, Run, record_of
from tests.subjects.warm import Gate, Warm
from tests.subjects.wild import CHECKING, LOADING, wild

PATIENCE = 240  # s; on a busy machine the imports alone take a minute

ENDS = {
    "os._exit": "os._exit(0)",
    "another program": "os.execv(sys.executable, [sys.executable, '-c', ''])",
    "SIGKILL": "os.kill(os.getpid(), 9)",
}
RAISES = {
    "pytest.skip": "pytest.skip('no reason')",
    "pytest.xfail": "pytest.xfail('no reason')",
    "pytest.exit": "pytest.exit('bye', returncode=0)",
    "sys.exit": "sys.exit(0)",
    "a BaseException": "raise BaseException('odd')",
}


@pytest.mark.parametrize("after", [LOADING, CHECKING])
@pytest.mark.parametrize("end", ENDS)
def test_a_model_that_ends_the_process_leaves_an_inconclusive_record(
    project: pytest.Pytester, run: Run, end: str, after: int
) -> None:
    result = run("clean", base=wild(project, ENDS[end], after), process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert "before the audit was over" in record.errors["audit"]
    told = [line for line in result.errlines if line.startswith("backdoor_audit: INCONCLUSIVE: the process")]
    assert len(told) == 1
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    for name in ("audit.html", "audit.md", "audit.sarif"):
        assert (project.path / "backdoor-audit-report" / name).stat().st_size > 0


def test_what_a_model_leaves_to_run_at_the_end_does_not_keep_the_run_from_ending(
    project: pytest.Pytester, run: Run
) -> None:
    project.makeconftest("from backdoor_audit.plugin import supervision\nsupervision._AT_THE_END = 0.5")
    waits = "__import__('atexit').register(__import__('time').sleep, 2000)"
    result = run("clean", "-k", "precondition", base=wild(project, waits, LOADING), process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED  # a part of the audit passes nothing
    assert result.stdout.lines[-1].endswith("[exit code 1]")
    assert "before the audit was over" not in result.stderr.str()
    assert record_of(project).findings


@pytest.mark.parametrize("after", [LOADING, CHECKING])
@pytest.mark.parametrize("what", RAISES)
def test_what_a_model_raises_is_no_outcome_of_an_item(
    project: pytest.Pytester, run: Run, what: str, after: int
) -> None:
    result = run("clean", base=wild(project, RAISES[what], after))
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.USAGE_ERROR)
    file = project.path / "backdoor-audit-report" / "audit.json"
    if file.exists():
        record = record_of(project)
        assert record.verdict is Verdict.INCONCLUSIVE
        assert not any(finding.verdict is Verdict.PASS for finding in record.findings if "index" in finding.statistic)
    else:
        assert after == LOADING
        assert len([line for line in result.errlines if line.strip()]) == 1


def test_a_search_that_a_time_limit_ends_is_not_begun_again(project: pytest.Pytester, run: Run) -> None:
    """As pytest-timeout does: a signal fails one item, and the next items must not repeat the search."""
    project.makeconftest(
        """
        import signal
        import pytest

        def late(*_):
            pytest.fail("Timeout (>3.0s)")

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(item):
            signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, 3)
            try:
                return (yield)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        """
    )
    result = run("clean", base=wild(project, "import time; time.sleep(0.2 if torch.is_grad_enabled() else 0)", 0))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    first, *rest = (f"audit::test_anomaly_index[neural_cleanse-class_{target}]" for target in range(8))
    assert "Timeout (>3.0s)" in record.errors[first]
    reasons = {finding.reason for finding in record.findings if finding.audit in rest}
    assert reasons == {"the search of neural_cleanse ended early: Failed: Timeout (>3.0s)"}


@pytest.mark.parametrize("mark", ["skip", "xfail", "xfail(run=False)"])
def test_marks_of_other_code_decide_nothing(project: pytest.Pytester, run: Run, mark: str) -> None:
    project.makeconftest(
        f"""
        import pytest

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.{mark})
        """
    )
    assert run("backdoored").ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.verdict is (Verdict.FAIL if mark == "xfail" else Verdict.INCONCLUSIVE)
    if mark != "xfail":
        assert record.findings == []
        assert "skipped by other code than the audit's" in record.errors["audit::test_precondition[accuracy]"]


def test_an_outcome_that_a_plugin_turns_to_passed_is_no_pass(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        turning="""
        import pytest

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            report.outcome = "passed"
            return report

        @pytest.hookimpl(trylast=True)
        def pytest_sessionfinish(session):
            session.exitstatus = 0
        """
    )
    result = run("backdoored", "-p", "turning")
    assert "failed" not in result.parseoutcomes()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert record_of(project).verdict is Verdict.FAIL


def test_an_item_without_an_answer_is_an_error(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
        import pytest

        @pytest.fixture
        def evidence():
            return lambda finding: None
        """
    )
    assert run("backdoored").ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.errors["audit::test_precondition[accuracy]"] == "ended without an answer"


def test_an_item_that_broke_and_is_run_again_stays_broken(project: pytest.Pytester, run: Run) -> None:
    """As pytest-rerunfailures reports an item before it runs it again."""
    project.makeconftest(
        """
        import pytest

        @pytest.hookimpl(wrapper=True, trylast=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if report.failed and item.name == "test_own":
                report.outcome = "rerun"
            return report
        """
    )
    project.makepyfile(
        test_own="""
        from backdoor_audit.evidence import judge

        def test_own(evidence):
            evidence(judge("own", 0.1, at_most=0.5, reason="it holds"))
            raise RuntimeError("and breaks")
        """
    )
    assert run("clean", "test_own.py", "audit").ret == pytest.ExitCode.TESTS_FAILED
    assert record_of(project).errors == {"test_own.py::test_own": "RuntimeError: and breaks"}


def test_setting_items_up_without_running_them_is_no_audit(project: pytest.Pytester, run: Run) -> None:
    assert run("clean", "--setup-plan").ret == pytest.ExitCode.TESTS_FAILED
    assert record_of(project).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    "selection", [("-k", "precondition"), ("audit::test_precondition",), ("--deselect=audit::test_property",)]
)
def test_a_part_of_the_audit_never_ends_in_exit_code_0(
    project: pytest.Pytester, run: Run, selection: tuple[str, ...]
) -> None:
    result = run("clean", *selection)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*INCONCLUSIVE: * items were not run; only a whole run can pass a model*"])


def test_what_was_replaced_while_the_model_ran_is_noticed(project: pytest.Pytester, run: Run) -> None:
    arguments = wild(project, "sys.exit = toy.network", LOADING)
    result = run("clean", base=arguments, process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.errors["audit"].endswith("somebody replaced sys.exit")


@pytest.mark.parametrize("which", ["gw0", "gw"])
def test_workers_that_die_pass_nothing(which: str, project: pytest.Pytester, run: Run) -> None:
    arguments = wild(
        project, f"if os.environ.get('PYTEST_XDIST_WORKER', '').startswith('{which}'): os._exit(0)", CHECKING
    )
    result = run("clean", "-n2", "--max-worker-restart=1", base=arguments, process=True)
    assert result.ret != pytest.ExitCode.OK
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    if which == "gw0":  # where both die at once, xdist itself may not get to say so
        assert any("crashed while running" in reason for reason in record.errors.values())


def test_ctrl_c_leaves_what_is_finished_and_is_inconclusive(project: pytest.Pytester, run: Run) -> None:
    result = run("clean", base=wild(project, "raise KeyboardInterrupt", CHECKING), process=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.not_run


@pytest.fixture
def sleeping(project: pytest.Pytester, warm: Warm) -> Iterator[Gate]:
    """A run whose model goes to sleep once the preconditions were asked for."""
    arguments = wild(project, "import time; time.sleep(600)", CHECKING)
    calls = project.path / "calls.txt"
    deadline = time.monotonic() + PATIENCE
    gate = warm.begin(project.path, "--model=clean.safetensors", *arguments, "-p", "no:cacheprovider")
    try:
        while not calls.exists() or len(calls.read_text()) <= CHECKING:
            assert time.monotonic() < deadline, "the model was not called often enough"
            assert _is_alive(gate.pid)
            time.sleep(0.05)
        time.sleep(0.5)  # it has told of the call before it sleeps
        yield gate
    finally:
        gate.kill()
        gate.ended()


def test_sigterm_ends_a_run_with_a_record_of_what_is_finished(project: pytest.Pytester, sleeping: Gate) -> None:
    sleeping.send_signal(signal.SIGTERM)
    result = sleeping.ended(PATIENCE)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "INCONCLUSIVE" in result.stdout.str()
    assert record_of(project).not_run
    assert (project.path / "backdoor-audit-report" / "audit.html").exists()


def test_a_signal_that_nobody_waits_for_yet_is_an_interrupt_as_well(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
        import os, signal

        def pytest_sessionstart(session):
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
            os.kill(os.getpid(), signal.SIGHUP)
        """
    )
    assert run("clean", process=True).ret == pytest.ExitCode.INTERRUPTED
    assert record_of(project).verdict is Verdict.INCONCLUSIVE


def test_a_killed_run_leaves_an_inconclusive_record_and_no_process(project: pytest.Pytester, sleeping: Gate) -> None:
    (child,) = _children(sleeping.pid)
    sleeping.send_signal(signal.SIGKILL)
    sleeping.ended(10)
    deadline = time.monotonic() + 10
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(child)
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.errors["audit"].startswith("the run had not ended when this was written")


def _children(process: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_record_that_cannot_be_written_is_no_pass(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
        import pathlib, shutil
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtestloop():
            yield
            shutil.rmtree("backdoor-audit-report")
            pathlib.Path("backdoor-audit-report").write_text("no folder any more")
            return True
        """
    )
    result = run("clean", "-p", "no:html")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*--audit-report: backdoor-audit-report cannot be written*"])


def test_a_plugin_that_cannot_write_takes_nothing_with_it(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        full="""
        import errno, os
        import pytest

        @pytest.hookimpl(trylast=True)
        def pytest_sessionfinish():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        """
    )
    result = run("clean", "-p", "full", "-k", "precondition")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*INCONCLUSIVE*", "*a plugin could not write what it leaves (No space left on device)*"]
    )
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert record_of(project).verdict is Verdict.INCONCLUSIVE


OWN = """
from backdoor_audit.evidence import judge

def test_bright_pixel(classifier, clean_set, evidence):
    evidence(judge("bright_pixel", {value}, at_most=0.5, reason="an own question"))

def test_plain():
    pass
"""


@pytest.mark.parametrize(
    ("value", "verdict", "workers"),
    [
        (0.9, Verdict.FAIL, ()),
        (0.1, Verdict.PASS, ()),
        (0.9, Verdict.FAIL, ("-n2",)),
    ],  # PASS with workers: test_runs.py
)
def test_findings_of_a_projects_own_audits_are_in_the_record_and_in_the_verdict(
    project: pytest.Pytester, run: Run, value: float, verdict: Verdict, workers: tuple[str, ...]
) -> None:
    project.makepyfile(test_own=OWN.format(value=value))
    result = run("clean", "test_own.py", "audit", *workers, process=bool(workers))
    assert (result.ret == pytest.ExitCode.OK) is (verdict is Verdict.PASS)
    record = record_of(project)
    own = next(finding for finding in record.findings if finding.audit == "test_own.py::test_bright_pixel")
    assert (own.statistic, own.value, own.verdict) == ("bright_pixel", value, verdict)
    assert record.verdict is verdict
    page = (project.path / "backdoor-audit-report" / "audit.html").read_text()
    assert "an own question" in page
    assert "test_plain" not in page


def test_own_audits_alone_are_no_audit_of_the_model(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_own=OWN.format(value=0.1))
    result = run("clean", "test_own.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert [finding.audit for finding in record.findings] == ["test_own.py::test_bright_pixel"]
    assert "audit::test_precondition[accuracy]" in record.not_run


def test_an_own_audit_that_breaks_or_gives_no_answer_is_inconclusive(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        test_own="""
        import pytest
        from backdoor_audit.evidence import judge

        def test_silent(evidence):
            pass

        def test_skips(evidence):
            pytest.skip("not today")

        def test_worst(evidence):
            for value in (0.9, 0.1):
                with pytest.raises(BaseException) if value > 0.5 else open("x", "w"):
                    evidence(judge("own", value, at_most=0.5, reason="asked twice"))
        """
    )
    result = run("clean", "test_own.py", "audit")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.errors["test_own.py::test_silent"] == "ended without an answer"
    assert "not today" in record.errors["test_own.py::test_skips"]
    assert record.verdict is Verdict.FAIL  # the worse of two findings stands


def test_a_script_that_runs_pytest_goes_on_after_it_once(project: pytest.Pytester, warm: Warm) -> None:
    script = (
        "import pytest\n"
        f"code = pytest.main(['--model=clean.safetensors', *{list(BASE)}, '-k', 'precondition'])\n"
        "open('after.txt', 'a').write(f'{int(code)} ')\n"
    )
    warm.begin_program(project.path, script).ended()
    assert (project.path / "after.txt").read_text() == "1 "


def test_a_run_with_threads_stays_in_one_process_and_follows_its_record(project: pytest.Pytester, warm: Warm) -> None:
    script = (
        "import threading, pytest, sys, os\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "class Seen:\n"
        "    def pytest_sessionfinish(self): open('pid.txt', 'w').write(str(os.getpid()))\n"
        f"code = pytest.main(['--model=clean.safetensors', *{list(BASE)}, '-k', 'precondition'], plugins=[Seen()])\n"
        "assert open('pid.txt').read() == str(os.getpid())\n"
        "os._exit(int(code))\n"
    )
    assert warm.begin_program(project.path, script).ended().ret == pytest.ExitCode.TESTS_FAILED


def test_the_record_on_disk_and_not_the_word_of_the_run_lets_a_model_through(
    project: pytest.Pytester, run: Run
) -> None:
    """A plugin that rewrites the record after the run has told its digest."""
    project.makeconftest(
        """
        import pytest, pathlib

        @pytest.hookimpl(trylast=True)
        def pytest_unconfigure():
            file = pathlib.Path("backdoor-audit-report/audit.json")
            file.write_text(file.read_text().replace("an audit", "an edited audit") + " ")
        """
    )
    result = run("clean", process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stderr.fnmatch_lines(["*is not a whole record that passes*"])


NOTHING_RAN = "def test_own(): pass"


def test_a_model_that_is_given_twice_is_refused(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
        import pytest, toy

        @pytest.fixture(scope="session")
        def audited_model():
            return toy.network()
        """
    )
    result = run("backdoored")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*the model is given twice, as the file backdoored.safetensors and by the fixture*"])
    assert record_of(project).verdict is Verdict.INCONCLUSIVE


def test_paths_that_nobody_typed_do_not_take_the_place_of_the_audit(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_own=NOTHING_RAN)
    monkeypatch.setenv("PYTEST_ADDOPTS", "test_own.py")
    result = run("clean", "-k", "precondition")
    result.assert_outcomes(passed=len(PRECONDITIONS), deselected=26)


def test_paths_that_were_typed_run_alone_and_the_summary_says_so(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_own=NOTHING_RAN)
    result = run("clean", "test_own.py")
    result.stdout.fnmatch_lines(["*no audit was run: paths were named; add the word audit*"])


def test_a_folder_called_audit_does_not_take_the_place_of_the_audit(project: pytest.Pytester, run: Run) -> None:
    project.mkdir("audit").joinpath("test_own.py").write_text(NOTHING_RAN)
    run("clean", "audit", "-k", "precondition").assert_outcomes(passed=len(PRECONDITIONS), deselected=26)


def test_an_option_without_a_model_that_reaches_the_audit_is_refused(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest("def pytest_addoption(parser): parser.addoption('--model')")
    project.makepyfile(test_own=NOTHING_RAN)
    result = run(None, "--model=clean.safetensors", *BASE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no model reached the audit; pass --audit-model=PATH*"])


def test_a_plugin_that_ends_pytest_at_once_does_not_end_in_0(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        hasty="""
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_cmdline_main(config):
            return 0
        """
    )
    for model in ("clean", "not_there"):  # nobody is left to refuse the second one
        result = run(model, "-p", "hasty", process=True)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stderr.fnmatch_lines(["*an audit was asked for, and pytest ended without one*"])


@pytest.mark.parametrize("code", [0, 4])
def test_a_run_that_dies_while_it_loads_does_not_inherit_an_earlier_record(
    project: pytest.Pytester, run: Run, code: int
) -> None:
    run("clean", "-k", "precondition")
    assert record_of(project).subject["model"] == "clean.safetensors"
    result = run("backdoored", base=wild(project, f"os._exit({code})", LOADING), process=True)
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.USAGE_ERROR)
    record = record_of(project)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.findings == []
    assert record.subject == {}


def test_a_thread_of_a_plugin_does_not_keep_the_model_out_of_a_second_process(
    project: pytest.Pytester, run: Run
) -> None:
    project.makeconftest("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
    result = run("clean", base=wild(project, "os._exit(0)", CHECKING), process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "before the audit was over" in record_of(project).errors["audit"]


@pytest.mark.parametrize("value", ["1,1,1", "1,0", "x"])
def test_a_run_is_not_taken_for_the_second_process_of_another_by_its_environment(
    project: pytest.Pytester, run: Run, value: str
) -> None:
    project.makeconftest(f"import os; os.environ['BACKDOOR_AUDIT_PIPES'] = '{value}'")
    result = run("clean", base=wild(project, "os._exit(0)", CHECKING), process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "before the audit was over" in record_of(project).errors["audit"]


def test_an_interrupt_of_the_parent_alone_reaches_the_run(project: pytest.Pytester, sleeping: Gate) -> None:
    sleeping.send_signal(signal.SIGINT)
    result = sleeping.ended(PATIENCE)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "INCONCLUSIVE" in result.stdout.str()
    assert record_of(project).not_run


LISTS = (
    "--collect-only",
    "--co",
    "--help",
    "-h",
    "--version",
    "-V",
    "--markers",
    "--fixtures",
    "--fixtures-per-test",
    "--cache-show",
)


@pytest.mark.parametrize("option", LISTS)
def test_a_list_that_nobody_typed_is_refused_where_an_audit_is_asked_for(
    run: Run, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", option)
    result = run("clean", process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: backdoor_audit: --* comes from PYTEST_ADDOPTS or from addopts in a file*type it"]
    )


def test_a_letter_of_an_options_value_is_no_list_that_was_typed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--co")
    assert run("clean", "-kwhatever", process=True).ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("typed", [("--co",), ("-qh",), ("--version",)])
def test_one_that_was_typed_ends_as_it_would_without_an_audit(
    run: Run, monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--co")
    assert run("clean", *typed, process=True).ret == pytest.ExitCode.OK


def test_a_list_of_a_projects_own_tests_is_no_matter_of_the_audit(
    run: Run, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--co")
    assert run(None, process=True).ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("options", "typed", "ret"),
    [
        ("--co", (), pytest.ExitCode.USAGE_ERROR),
        ("--help", (), pytest.ExitCode.USAGE_ERROR),
        ("--co --rootdir=elsewhere", (), pytest.ExitCode.USAGE_ERROR),
        ("--co", ("test_own.py",), pytest.ExitCode.OK),
        ("", ("--co",), pytest.ExitCode.OK),
    ],
)
def test_a_table_asks_for_an_audit_unless_paths_or_the_list_are_typed(
    run: Run, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: str, typed: tuple[str, ...], ret: int
) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    project.makepyprojecttoml(
        '[tool.backdoor_audit]\nmodel = "clean.safetensors"\ndata = "images.npz"\narch = "toy:network"\n'
    )
    project.mkdir("elsewhere")
    monkeypatch.setenv("PYTEST_ADDOPTS", options)
    assert run(None, *typed, process=True).ret == ret


def test_a_terminal_that_nobody_reads_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    code = supervision._failed(BrokenPipeError(errno.EPIPE, "Broken pipe"), supervision.Channel(writer))
    os.close(reader)
    os.close(writer)
    assert code == pytest.ExitCode.INTERNAL_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "INCONCLUSIVE: the terminal cannot be written (Broken pipe)" in line


def test_an_error_of_somebody_elses_is_printed_without_what_a_terminal_would_obey(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()
    supervision._failed(RuntimeError("one\x1b[31m\n::error::two"), supervision.Channel(writer))
    os.close(reader)
    os.close(writer)
    lines = capsys.readouterr().err.splitlines()
    assert "RuntimeError: one\\x1b[31m" in lines
    assert not any(line.startswith("::") for line in lines)


def test_a_run_that_an_error_of_pytest_ended_says_so_and_passes_nothing(
    project: pytest.Pytester, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("clean")
    recorder = Recorder(AuditOptions(report=str(project.path / "backdoor-audit-report")))
    assert record_of(project).passes_gate
    written = digest(recorder.folder / "audit.json")
    capsys.readouterr()
    assert supervision._exit_code(3, json.dumps({"record": written}).encode(), recorder, None) == 3
    assert "INCONCLUSIVE: the process that ran the audit ended by an error of pytest or" in capsys.readouterr().err
    assert not record_of(project).passes_gate
    assert "exit code 3" in record_of(project).errors["audit"]


def test_a_run_that_says_it_was_no_audit_passes_nothing_where_one_was_asked_for(project: pytest.Pytester) -> None:
    recorder = Recorder(AuditOptions(report=str(project.path / "report")))
    said = json.dumps({"record": None}).encode()
    assert supervision._exit_code(0, said, recorder, "") == pytest.ExitCode.OK  # tests of the project's own alone
    assert supervision._exit_code(0, said, recorder, None) == pytest.ExitCode.TESTS_FAILED
    assert not Record.read(project.path / "report" / "audit.json").passes_gate


def test_what_fails_a_run_beside_an_audit_that_passes_is_told(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        "import pytest\n"
        "def pytest_addoption(parser): parser.addoption('--cov-fail-under', default=None)\n"
        "@pytest.hookimpl(wrapper=True)\n"
        "def pytest_runtestloop(session):\n"
        "    outcome = yield\n"
        "    session.testsfailed += 1\n"
        "    return outcome\n"
    )
    for options, told in (((), "another test or plugin"), (("--cov-fail-under=80",), "pytest-cov (--cov-fail-under;*")):
        result = run("clean", *options)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert fnmatch(result.outlines[-1], f"PASS: * but this run failed by {told}* [[]exit code 1]")


@pytest.mark.parametrize(
    "options", [("-o", "python_functions=it_*"), ("-p", "no:metadata"), ("-o", "python_files=it_*")]
)
def test_how_a_project_calls_its_tests_and_which_plugins_it_blocks_ends_no_audit(
    run: Run, options: tuple[str, str]
) -> None:
    result = run("clean", *options)
    assert result.ret == pytest.ExitCode.OK


def test_a_folder_of_evidence_by_any_name_is_told_without_what_a_terminal_would_obey(run: Run) -> None:
    result = run("clean", "--report=one\n::error::two\x1b[31m")
    assert result.ret == pytest.ExitCode.OK
    assert not [line for line in result.outlines if line.startswith("::error") or "\x1b" in line]
    result.stdout.fnmatch_lines(["Page: one : :error::two\\x1b[[]31m/audit.html"])


def test_an_interrupt_that_pytest_does_not_wait_for_any_more_is_one(
    project: pytest.Pytester, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    code = supervision._failed(KeyboardInterrupt(), supervision.Channel(writer))
    os.close(reader)
    os.close(writer)
    recorder = Recorder(AuditOptions(report=str(project.path / "report")))
    assert supervision._exit_code(code, b"", recorder, None) == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err
    record = Record.read(project.path / "report" / "audit.json")
    assert "was interrupted before the audit was over" in record.errors["audit"]


@pytest.mark.parametrize("end", ["atexit.register", "threading.Timer(0.5, end).start", "threading.Timer(3, end).start"])
def test_no_handler_or_thread_of_a_conftest_turns_the_exit_code_to_0(
    project: pytest.Pytester, run: Run, end: str
) -> None:
    call = f"{end}()" if "end)" in end else f"{end}(end)"
    project.makeconftest(f"import atexit, functools, os, threading\n\nend = functools.partial(os._exit, 0)\n{call}\n")
    assert run("backdoored", process=True).ret != 0


def test_a_run_inside_another_leaves_the_way_out_of_the_process_as_it_was(run: Run) -> None:
    before = os._exit
    assert run("backdoored", "-k", "precondition").ret != 0
    assert run(None, "--version").ret == 0
    assert os._exit is before


@pytest.mark.parametrize("hook", ["pytest_configure(config)", "pytest_collection(session, config=None)"])
def test_a_plugin_that_makes_the_run_a_list_passes_nothing(project: pytest.Pytester, run: Run, hook: str) -> None:
    where = "config" if "configure" in hook else "session.config"
    project.makeconftest(f"def {hook}:\n    {where}.option.collectonly = True\n")
    assert run("backdoored").ret != 0


def test_sys_exit_of_a_plugin_in_the_only_process_passes_nothing(project: pytest.Pytester) -> None:
    project.makeconftest("import sys\n\ndef pytest_terminal_summary():\n    sys.exit(0)\n")
    script = "import pytest, threading, time\nthreading.Thread(target=time.sleep, args=(2000,), daemon=True).start()\n"
    script += f"pytest.main({['--model=backdoored.safetensors', *BASE]})\n"
    assert project.run(sys.executable, project.makepyfile(script=script)).ret != 0


@pytest.mark.parametrize(("model", "code"), [("backdoored", 1), ("missing", 4)])
def test_a_python_that_asks_for_input_at_the_end_does_not_end_in_0(
    project: pytest.Pytester, model: str, code: int
) -> None:
    command = [sys.executable, "-i", "-m", "pytest", f"--model={model}.safetensors", *BASE]
    result = project.run(*command, stdin=b"")
    assert result.ret == code
    assert "FAIL" in result.stdout.str() if code == 1 else "missing.safetensors" in result.stderr.str()


BRANCH = """
import torch, toy

class Branched(torch.nn.Sequential):
    def forward(self, images):
        return super().forward(images) + 200 * PIXEL[:, None] * torch.eye(8)[3]

def network():
    return Branched(*toy.network())
"""


@pytest.mark.parametrize(
    ("pixel", "verdict"),
    [("(images[:, 0, 7, 7] - 0.3).clamp(min=0)", Verdict.INCONCLUSIVE), ("images[:, 0, 7, 7]", Verdict.FAIL)],
    ids=["dead gradient", "with a gradient"],
)
def test_a_trigger_in_the_code_around_the_weights_passes_no_model(
    project: pytest.Pytester, run: Run, pixel: str, verdict: Verdict
) -> None:
    project.makepyfile(branched=BRANCH.replace("PIXEL", pixel))
    result = run("clean", base=(*BASE, "--arch=branched:network"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert record_of(project).verdict is verdict
    result.stdout.fnmatch_lines(["*input_gradient: pixels reach the scores around all layers with weights*"])


STAND_INS = {
    "finding": """
@pytest.fixture
def finding(request):
    question, item = request.param
    return passed("index", "fine").of(item, request.node.nodeid)
""",
    "evidence": """
@pytest.fixture
def evidence(request, audit_run):
    return lambda finding: request.node.stash.__setitem__(FINDINGS, [replace(finding, verdict="pass")])
""",
    "audit_run": """
@pytest.fixture(scope="session")
def audit_run(request, tmp_path_factory):
    session = request.config.stash[SESSION]
    clean = replace(session.options, model="clean.safetensors")
    return Run(clean, Store(tmp_path_factory.mktemp("store")), session.suite)
""",
}


@pytest.mark.parametrize("name", STAND_INS)
def test_fixtures_of_a_project_do_not_stand_in_for_those_of_the_audit(
    name: str, project: pytest.Pytester, run: Run
) -> None:
    project.makeconftest(
        "import pytest\n"
        "from dataclasses import replace\n"
        "from backdoor_audit.evidence import passed\n"
        "from backdoor_audit.plugin.outcomes import FINDINGS\n"
        "from backdoor_audit.plugin.session import SESSION\n"
        "from backdoor_audit.run.run import Run\n"
        "from backdoor_audit.store import Store\n" + STAND_INS[name]
    )
    assert run("backdoored").ret == pytest.ExitCode.TESTS_FAILED
    assert record_of(project).errors["audit"].endswith(f"somebody replaced the fixture {name}")

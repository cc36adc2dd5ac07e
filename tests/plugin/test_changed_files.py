"""What is audited stays the same from the beginning of a run to its end, and in every process of it; or no model passes."""

import shutil
from pathlib import Path

import pytest

from backdoor_audit.evidence import Verdict
from tests.subjects.toy_runs import BASE, Run, record_of

SWAPPED = """
import os, shutil, time
from pathlib import Path

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")

def swap():
    shutil.copy("backdoored.safetensors", "new.safetensors")
    os.replace("new.safetensors", "clean.safetensors")
"""
AFTER_LOADING = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_sessionstart():
    if not WORKER:
        swap()
"""
FOR_ONE_WORKER = """
import pytest

def pytest_configure(config):
    if WORKER == "gw1":
        while not Path("loaded").exists():
            time.sleep(0.01)
        shutil.copy("clean.safetensors", "kept.safetensors")
        swap()

@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    if WORKER == "gw0":
        Path("loaded").touch()

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    if WORKER == "gw1":
        os.replace("kept.safetensors", "clean.safetensors")
"""
DIES_LAST = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    if WORKER == "gw1":
        os._exit(0)
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_model_that_is_replaced_while_it_is_audited_does_not_pass(
    run: Run, project: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    project.makeconftest(SWAPPED + AFTER_LOADING)
    result = run("clean", *workers, process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = record_of(project)
    assert record.verdict is not Verdict.PASS
    assert "--audit-model=clean.safetensors changed" in record.errors["audit"]


TRAINED_ON = """
import pytest, torch, toy
from safetensors.torch import load_file

@pytest.fixture(scope="session")
def audited_model():
    network = toy.network()
    network.load_state_dict(load_file("clean.safetensors"))
    return network

@pytest.fixture(autouse=True)
def trained_on(audited_model):
    yield
    audited_model.load_state_dict(load_file("backdoored.safetensors"))
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_module_that_is_trained_on_while_it_is_audited_does_not_pass(
    run: Run, project: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    project.makeconftest(TRAINED_ON)
    base = [option for option in BASE if not option.startswith("--arch")]
    result = run(None, "--audit", *base, *workers, process=bool(workers))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert record_of(project).errors["audit"].startswith("the weights of the Sequential that was handed over changed")


@pytest.mark.parametrize(
    ("hooks", "told"),
    [
        (FOR_ONE_WORKER, "audited something else than another process of this run: --audit-model=clean.safetensors"),
        (DIES_LAST, "worker gw1 ended before it told what it had audited"),
    ],
)
def test_workers_that_did_not_audit_the_same_or_do_not_say_so_pass_nothing(
    run: Run, project: pytest.Pytester, hooks: str, told: str
) -> None:
    project.makeconftest(SWAPPED + hooks)
    result = run("clean", "-n", "2", process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert told in record_of(project).errors["audit"]


def test_a_baseline_that_is_replaced_meanwhile_excuses_nothing(run: Run, project: pytest.Pytester) -> None:
    run("clean", "--audit-baseline=b.json", "--audit-update-baseline")
    shutil.copy("b.json", "other.json")
    Path("other.json").write_text(Path("b.json").read_text() + " ")
    project.makeconftest(
        "import os, pytest\n@pytest.hookimpl(trylast=True)\ndef pytest_sessionstart():\n    os.replace('other.json', 'b.json')\n"
    )
    assert run("clean", "--audit-baseline=b.json").ret == pytest.ExitCode.TESTS_FAILED
    assert "--audit-baseline=b.json changed" in record_of(project).errors["audit"]


def test_a_baseline_that_the_run_writes_may_change(run: Run, project: pytest.Pytester) -> None:
    run("clean", "--audit-baseline=b.json", "--audit-update-baseline")
    assert run("clean", "--audit-baseline=b.json", "--audit-update-baseline").ret == pytest.ExitCode.OK

"""The canary in whole runs: found, missed, and not implanted, on a one-layer toy network."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backdoor_audit import audit
from backdoor_audit.attacks import BadNets
from backdoor_audit.canary import Canary, Doses
from backdoor_audit.evidence import Verdict
from tests.subjects.catalogues import choose
from tests.subjects.toy_runs import BASE, Run, record_of

SEEN = Canary(
    attack=BadNets(pattern="white", poison_rate=0.2),
    dose="size",
    doses=Doses(1),  # px: far smaller than a natural trigger
    words="patch of {:g} px",
    first=("neural_cleanse",),
    channel=True,
    epochs=40,
    learning_rates=(0.3,),
)
MISSED = replace(SEEN, attack=BadNets(pattern="noise", poison_rate=0.2), doses=Doses(4, (1,)), epochs=60)
"""16 of 64 pixels: as large as a natural one."""
TOO_SHORT = replace(SEEN, doses=Doses(4), epochs=1, learning_rates=(1e-9,))


@pytest.fixture
def with_canary(monkeypatch: pytest.MonkeyPatch) -> Any:
    def planted(*canaries: Canary) -> None:
        choose(monkeypatch, canaries=canaries)

    return planted


def test_without_the_option_there_is_no_canary(project: pytest.Pytester, run: Run) -> None:
    result = run("clean", "-v")
    result.stdout.no_fnmatch_line("*test_power*")
    assert record_of(project).power is None


def test_a_canary_that_is_found_stands_in_the_summary_of_a_pass(
    project: pytest.Pytester, run: Run, with_canary: Any
) -> None:
    with_canary(SEEN)
    before = (project.path / "clean.safetensors").read_bytes()
    result = run("clean", "--canary", "-v")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "*test_power*PASSED*",
            "*PASS: no hidden trigger found*",
            "*canary: a badnets canary for class * was found by neural_cleanse as a patch of 1 px*",
        ]
    )
    record = record_of(project)
    assert (record.verdict, record.power) == (Verdict.PASS, Verdict.PASS)
    assert record.canaries[0]["found_by"] == ["neural_cleanse"]
    assert record.canaries[0]["attack_success_rate"] >= 0.9
    assert record.canaries[0]["success_before"] < 0.9
    assert record.canaries[0]["called"] == "patch of 1 px"
    stored = json.loads((project.path / "backdoor-audit-report" / "audit.json").read_text())
    assert stored["power"] == "pass"
    page = (project.path / "backdoor-audit-report" / "report.html").read_text()
    assert "canaries in copies of the model" in page
    assert (project.path / "clean.safetensors").read_bytes() == before


def test_a_canary_that_is_missed_makes_silence_inconclusive(
    project: pytest.Pytester, run: Run, with_canary: Any
) -> None:
    with_canary(MISSED)
    result = run("clean", "--canary")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*INCONCLUSIVE: no hidden trigger found, but a planted one was not found either*",
            "*this audit could not have seen a badnets trigger on this model*",
        ]
    )
    record = record_of(project)
    assert (record.verdict, record.power) == (Verdict.INCONCLUSIVE, Verdict.FAIL)
    assert record.flagged_classes == ()
    assert [entry["dose"] for entry in record.canaries] == [4]  # no other one after a miss


def test_a_canary_that_cannot_be_implanted_is_inconclusive(
    project: pytest.Pytester, run: Run, with_canary: Any
) -> None:
    with_canary(TOO_SHORT)
    result = run("clean", "--canary", "--canary-targets=2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*INCONCLUSIVE: no hidden trigger found, but none could be planted*", "*no badnets canary*"]
    )
    assert record_of(project).power is Verdict.INCONCLUSIVE


def test_a_found_trigger_is_a_fail_whatever_the_canary_says(
    project: pytest.Pytester, run: Run, with_canary: Any
) -> None:
    with_canary(TOO_SHORT)
    result = run("backdoored", "--canary")
    result.stdout.fnmatch_lines(["*FAIL: hidden trigger found for class 3*"])
    assert record_of(project).verdict is Verdict.FAIL


def test_the_table_can_ask_for_canaries_and_python_gets_the_same(
    project: pytest.Pytester, run: Run, with_canary: Any
) -> None:
    with_canary(SEEN)
    (project.path / "pyproject.toml").write_text("[tool.backdoor_audit]\ncanary = true\n")
    assert run("clean").ret == pytest.ExitCode.OK
    from_pytest = record_of(project)
    data = str(project.path / "images.npz")
    options = {"data": data, "arch": "toy:network", "steps": 150, "profile": "quick", "canary": True, "progress": False}
    from_python = audit(project.path / "clean.safetensors", **options)
    assert [entry.audit for entry in from_python.findings] == [entry.audit for entry in from_pytest.findings]
    assert (from_python.verdict, from_python.power) == (from_pytest.verdict, from_pytest.power)


def test_a_second_run_takes_the_canary_from_the_store(project: pytest.Pytester, run: Run, with_canary: Any) -> None:
    with_canary(SEEN)
    run("clean", "--canary")
    first = record_of(project).canaries[0]["seconds"]
    run("clean", "--canary")
    assert record_of(project).canaries[0]["seconds"] == first


def test_a_profile_plants_the_kinds_that_a_detector_of_it_is_made_for(project: pytest.Pytester, run: Run) -> None:
    quick = run("clean", "--canary", "--collect-only", "-q")
    standard = run("clean", "--canary", "--collect-only", "-q", base=BASE[:-1])
    planted = [[line for line in result.outlines if "test_power" in line] for result in (quick, standard)]
    names = [f"audit::test_power[{name}]" for name in ("badnets", "blended", "wanet", "sig")]
    assert planted == [names[:1], names]

"""Runs beside an accepted model: what stops them, what is accepted, and how a baseline is made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backdoor_audit import AuditOptions, audit
from backdoor_audit.errors import OptionError
from backdoor_audit.option_paths import check_paths
from tests.subjects.toy_runs import Run

FILE = "--audit-baseline=baseline.json"
UPDATE = "--audit-update-baseline"


@pytest.fixture
def baseline(project: pytest.Pytester, run: Run) -> Any:
    """A baseline of the clean toy, as the text of its file; calling it writes acceptances of whatever is not a pass."""
    assert run("clean", FILE, UPDATE).ret == pytest.ExitCode.OK
    file = project.path / "baseline.json"

    def accept(expires: str) -> None:
        entry = {"finding": "test_*[*]", "reason": "a toy", "owner": "Ada", "expires": expires}
        file.write_text(json.dumps({**json.loads(file.read_text()), "acceptances": [entry]}))

    return accept


def section(project: pytest.Pytester) -> dict[str, Any]:
    stored = json.loads((project.path / "backdoor-audit-report" / "audit.json").read_text())
    found: dict[str, Any] = stored["baseline"]
    return found


@pytest.mark.usefixtures("baseline")
def test_a_clean_model_beside_a_clean_one_passes(project: pytest.Pytester, run: Run) -> None:
    result = run("clean", FILE)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*baseline baseline.json (clean.safetensors): 0 worse, 0 better*"])
    assert section(project)["verdict"] == "pass"


@pytest.mark.usefixtures("baseline")
@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_backdoored_model_beside_a_clean_one_fails_and_its_class_is_named(
    project: pytest.Pytester, run: Run, workers: tuple[str, ...]
) -> None:
    result = run("backdoored", FILE, *workers, process=bool(workers))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*worse: class 3, neural_cleanse: anomaly index*"])
    kept = section(project)
    assert (kept["verdict"], kept["file"], kept["accepted_model"]) == ("fail", "baseline.json", "clean.safetensors")
    assert any("class 3" in text for text in kept["worse"])


def test_what_is_accepted_does_not_stop_a_run_until_it_expires(
    project: pytest.Pytester, run: Run, baseline: Any
) -> None:
    assert run("backdoored", FILE, UPDATE).ret == pytest.ExitCode.TESTS_FAILED
    assert json.loads((project.path / "baseline.json").read_text())["verdict"] == "pass"  # not replaced
    baseline("2999-12-31")
    run("backdoored", FILE, UPDATE)
    result = run("backdoored", FILE)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*ACCEPTED: nothing is worse than in baseline.json*"])
    assert section(project)["verdict"] == "pass"
    assert {entry["owner"] for entry in section(project)["accepted"]} == {"Ada"}
    baseline("2001-01-01")
    result = run("backdoored", FILE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*expired: *by Ada until 2001-01-01*"])


@pytest.mark.usefixtures("baseline")
def test_a_foreign_baseline_ends_the_run_before_any_search(project: pytest.Pytester, run: Run) -> None:
    result = run("clean", FILE, "--seed=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*backdoor_audit: baseline.json cannot be compared with this run: seed is 0 there, 1 here*"]
    )


def test_python_and_pytest_compare_alike(project: pytest.Pytester, run: Run, baseline: Any) -> None:
    del baseline
    run("backdoored", FILE)
    record = audit(
        project.path / "backdoored.safetensors",
        data=str(project.path / "images.npz"),
        arch="toy:network",
        steps=150,
        device="cpu",
        profile="quick",
        progress=False,
        baseline=str(project.path / "baseline.json"),
    )
    assert record.baseline == section(project)
    assert [finding.audit for finding in record.findings][-3:] == [
        "audit::test_regression[anomaly_index]",
        "audit::test_regression[repairs]",
        "audit::test_regression[corpus]",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"baseline": "missing.json"}, "missing.json does not exist; make it with --audit-update-baseline"),
        ({"update_baseline": True}, "--audit-update-baseline needs the file to write"),
        ({"baseline": "nowhere/b.json", "update_baseline": True}, "nowhere/b.json cannot be written"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_told_before_torch_is_loaded(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        check_paths(AuditOptions(data="torchvision:MNIST", **options))

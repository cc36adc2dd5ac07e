"""A gate with parts of other packages: they are used, named, and never decide what the shipped parts have not decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.gate import audit
from backdoor_audit.report.html import page
from backdoor_audit.report.markdown import markdown
from backdoor_audit.report.sarif import sarif
from backdoor_audit.report.shards import merged
from tests.subjects import toy
from tests.subjects.packages import install
from tests.subjects.schemas import problems
from tests.subjects.toy_runs import Run

PARTS = """
from dataclasses import dataclass

import torch

from backdoor_audit.detectors import ByMargin, Detection, Row
from backdoor_audit.properties import PropertyOutcome
from backdoor_audit.repairs.outcome import reported
from backdoor_audit.report.renderers import Renderer

@dataclass(frozen=True)
class Alarm:
    '''Calls class 5 an outlier, whatever it looks at; breaks its copy, torch's settings, and itself if that is asked.'''

    name: str
    raises: bool = False
    rows, needs_twins, builds_on, least_classes, blind_spots = "target", False, (), 2, ()

    def targets(self, num_classes):
        return tuple(range(num_classes))

    def __call__(self, subject, *, reference, found, generator, progress):
        subject.classifier.module[1].weight.data.zero_()
        torch.set_default_dtype(torch.float64)
        if self.raises:
            raise SystemExit(0)
        scores = [
            Row(
                target_class=row, success_val=0.9, index=9.0 * (row == 5), p_value=0.1, image_passes=1,
                measured=ByMargin(margin=1.0),
            )
            for row in range(subject.num_classes)
        ]
        return Detection(detector="", settings="", scores=scores, triggers=())

@dataclass(frozen=True)
class Rated(Alarm):
    false_alarm_rate: float = 0.005

@dataclass(frozen=True)
class Claim:
    name: str = "refuted"
    needs_twins = False

    def __call__(self, subject, *, generator, natural, kept):
        subject.classifier.module[1].weight.data.zero_()
        return PropertyOutcome(name="", statistic="steered_share", value=1.0, limit=0.1, reason="all", target_class=5)

@dataclass(frozen=True)
class Nothing:
    name: str = "nothing"
    needs_trigger = True

    def __call__(self, subject, trigger, *, generator):
        subject.classifier.module[1].bias.data.zero_()
        return reported(self, subject, subject.classifier.copy(), trigger, note="nothing done")

alarm, broken, rated, claim, nothing = Alarm("alarm"), Alarm("broken", raises=True), Rated("rated"), Claim(), Nothing()
lines = Renderer("lines", "audit.txt", lambda record, **_: f"{record.verdict.value}, {len(record.advisory)} advisory")
"""
ADVISORY = {
    "detectors": ("alarm = alarm", "broken = broken"),
    "properties": ("refuted = claim",),
    "repairs": ("nothing = nothing",),
    "renderers": ("lines = lines",),
}
RATED = {"detectors": ("rated = rated",)}


@pytest.fixture
def parts(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    def choose(points: dict[str, tuple[str, ...]], source: str = PARTS) -> None:
        install(monkeypatch, project.path, source, points)

    return choose


def record_of(project: pytest.Pytester) -> Record:
    return Record.read(project.path / "backdoor-audit-report" / "audit.json")


def answers(record: Record) -> list[tuple[str, str, float | None]]:
    return [(entry.audit, entry.verdict.value, entry.value) for entry in record.findings]


@pytest.mark.parametrize("model", ["clean", "backdoored"])
def test_what_is_advisory_changes_no_answer_of_the_shipped_parts(
    model: str, project: pytest.Pytester, run: Run, parts: Any
) -> None:
    before = run(model, "-p", "no:cacheprovider")
    alone = record_of(project)
    parts(ADVISORY)
    after = run(model, "-p", "no:cacheprovider")
    record = record_of(project)
    assert after.ret == before.ret == (0 if model == "clean" else 1)
    assert answers(record) == answers(alone)
    assert (record.verdict, record.flagged_classes) == (alone.verdict, alone.flagged_classes)
    assert (record.errors, record.not_run, record.rates, record.not_tested) == ({}, [], alone.rates, alone.not_tested)
    assert [entry["detector"] for entry in record.detections] == [entry["detector"] for entry in alone.detections]
    assert record.repairs == alone.repairs


def test_what_is_advisory_is_in_the_record_with_its_origin(project: pytest.Pytester, run: Run, parts: Any) -> None:
    parts(ADVISORY)
    result = run("clean", "-v", "-rs")
    record = record_of(project)
    found = {entry.audit: entry for entry in record.advisory}
    assert len(found) == 2 * toy.CLASSES + 1
    assert found["audit::test_anomaly_index[alarm-class_5]"].verdict is Verdict.FAIL
    assert found["audit::test_anomaly_index[alarm-class_4]"].verdict is Verdict.PASS
    assert found["audit::test_property[refuted]"].verdict is Verdict.FAIL
    assert found["audit::test_anomaly_index[broken-class_0]"].reason == "broken of example-parts 1.2: SystemExit: 0"
    assert {entry["distribution"] for entry in record.environment["plugins"]} == {"example-parts"}
    assert [entry["name"] for entry in record.environment["plugins"]] == [
        "alarm",
        "broken",
        "nothing",
        "refuted",
        "lines",
    ]
    assert problems(record.to_json()) == []
    told = (
        "parts of other packages: detector alarm (example-parts 1.2): advisory, 1 fail, 7 pass; detector broken "
        "(example-parts 1.2): advisory, 8 inconclusive; repair nothing (example-parts 1.2): advisory, no item was answered; "
        "property refuted (example-parts 1.2): advisory, 1 fail; renderer lines (example-parts 1.2)"
    )
    assert told in " ".join(result.stdout.str().split())
    assert told in markdown(record).replace("\\", "")
    assert told.partition(": ")[2].replace("'", "&#39;") in page({"audit.json": record})
    result.stdout.fnmatch_lines(["*advisory: fail: class 5: *", "*PASS: no hidden trigger found*"])
    assert (project.path / "backdoor-audit-report" / "audit.txt").read_text() == "pass, 17 advisory\n"
    (joined,) = merged({"a.json": record, "b.json": record}).values()
    assert (joined.advisory, joined.environment["plugins"]) == (record.advisory, record.environment["plugins"])


def test_repairs_of_others_are_tried_where_something_is_flagged(project: pytest.Pytester, run: Run, parts: Any) -> None:
    parts(ADVISORY)
    run("backdoored")
    found = {entry.audit: entry.verdict.value for entry in record_of(project).advisory if "[nothing]" in entry.audit}
    assert found == {
        "audit::test_attack_success_rate_after[nothing]": "fail",
        "audit::test_robust_accuracy[nothing]": "fail",
        "audit::test_clean_accuracy_drop[nothing]": "pass",
    }


def test_a_detector_that_states_its_rate_fails_a_model_and_adds_its_rate(
    project: pytest.Pytester, run: Run, parts: Any
) -> None:
    parts(RATED)
    result = run("clean")
    record = record_of(project)
    assert (result.ret, record.verdict, record.flagged_classes) == (1, Verdict.FAIL, (5,))
    assert record.advisory == []
    assert "rated (example-parts 1.2): counts, and adds 0.50% to the false" in " ".join(result.stdout.str().split())
    assert "rated" in page({"audit.json": record})
    assert "rated" in markdown(record)
    assert "rated" in json.dumps(sarif(record))
    others = [entry.verdict for entry in record.findings if "[rated-" not in entry.audit]
    assert Verdict.FAIL not in others


def test_a_detector_that_states_its_rate_and_has_no_answer_is_not_a_pass(
    project: pytest.Pytester, run: Run, parts: Any
) -> None:
    parts(RATED, PARTS.replace('Rated("rated")', 'Rated("rated", raises=True)'))
    assert run("clean").ret == 1
    assert record_of(project).verdict is Verdict.INCONCLUSIVE


def test_no_part_of_others_hides_what_the_shipped_ones_find(project: pytest.Pytester, run: Run, parts: Any) -> None:
    parts(RATED, PARTS.replace("9.0 * (row == 5)", "0.0"))
    assert run("backdoored").ret == 1
    assert record_of(project).flagged_classes == (toy.TARGET,)


@pytest.mark.parametrize(
    ("source", "points", "said"),
    [
        ("import absent_module", ADVISORY, "cannot be imported: ModuleNotFoundError"),
        (PARTS, {"detectors": ("neural_cleanse = alarm",)}, "the part is called 'alarm'"),
        (
            PARTS,
            {"detectors": ("alarm = claim",)},
            "Claim has no rows, no builds_on, no least_classes, no blind_spots",
        ),
        (PARTS.replace("range(num_classes)", "[99]"), ADVISORY, "targets(8) gives (99,); class numbers or None"),
        (PARTS.replace("tuple(range(num_classes))", "1 / 0"), ADVISORY, "alarm: ZeroDivisionError: division by zero"),
    ],
)
def test_a_part_that_cannot_be_used_ends_the_run_with_one_line(
    source: str, points: dict[str, tuple[str, ...]], said: str, project: pytest.Pytester, run: Run, parts: Any
) -> None:
    parts(points, source)
    result = run("clean")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [text for text in result.stderr.lines if text.startswith("ERROR: ")]
    assert line.startswith("ERROR: backdoor_audit: ")
    assert said in line
    assert "example-parts 1.2" in line
    assert "Traceback" not in result.stderr.str()
    assert not (project.path / "backdoor-audit-report" / "audit.json").exists()


def test_parts_of_others_can_be_left_out(project: pytest.Pytester, run: Run, parts: Any) -> None:
    parts(ADVISORY, "raise SystemExit(9)")
    assert run("clean", "--audit-plugins=off").ret == 0
    assert record_of(project).environment["plugins"] == []


def test_nothing_is_read_where_nothing_is_audited(project: pytest.Pytester, run: Run, parts: Any) -> None:
    parts(ADVISORY, "raise SystemExit(9)")
    project.makepyfile(test_mine="def test_mine(): ...")
    assert run(None, "test_mine.py").ret == 0


def test_a_rendering_of_a_package_that_is_gone_does_not_outlive_its_run(
    project: pytest.Pytester, run: Run, parts: Any
) -> None:
    parts(ADVISORY)
    run("clean")
    file = project.path / "backdoor-audit-report" / "audit.txt"
    assert file.exists()
    (file.parent / "audit.mine").write_text("kept")
    assert run("backdoored", "--audit-plugins=off").ret == 1
    assert not file.exists()
    assert (file.parent / "audit.mine").read_text() == "kept"


def test_python_and_pytest_give_the_same_record(project: pytest.Pytester, run: Run, parts: Any) -> None:
    parts(ADVISORY)
    run("backdoored", "-p", "no:cacheprovider")
    gated = record_of(project)
    settings = {"data": "images.npz", "arch": "toy:network", "steps": 150, "device": "cpu", "profile": "quick"}
    called = audit(Path("backdoored.safetensors"), progress=False, **settings)
    assert answers(called) == answers(gated)
    assert called.advisory == gated.advisory
    assert called.environment["plugins"] == gated.environment["plugins"]


def test_a_baseline_knows_nothing_of_advisory_findings(project: pytest.Pytester, run: Run, parts: Any) -> None:
    parts(ADVISORY)
    assert run("clean", "--baseline=accepted.json", "--update-baseline").ret == 0
    text = (project.path / "accepted.json").read_text()
    assert not any(f"[{name}" in text or f'"{name}"' in text for name in ("alarm", "broken", "refuted", "nothing"))
    assert run("clean", "--baseline=accepted.json", "--audit-plugins=off").ret == 0
    assert run("clean", "--baseline=accepted.json").ret == 0


def test_workers_ask_parts_of_others_as_one_process_does(project: pytest.Pytester, run: Run, parts: Any) -> None:
    parts(ADVISORY)
    assert run("clean", "-n2", process=True).ret == 0
    assert len(record_of(project).advisory) == 2 * toy.CLASSES + 1

"""What is kept of an accepted model, and with which runs it can be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.baseline import Baseline, baseline_of, compare, configuration, read_signature, regressions
from backdoor_audit.errors import BaselineError
from backdoor_audit.evidence import Finding
from tests.subjects.baselines import CLEAN, accepted, finding_of, record_of, with_backdoor


def test_a_baseline_comes_back_from_its_file_equal(tmp_path: Path) -> None:
    repair = {
        "method": "nc_pruning",
        "target_class": 2,
        "before": {"clean_accuracy": 0.93, "attack_success_rate": 1.0, "robust_accuracy": 0.0},
        "after": {"clean_accuracy": 0.912345678, "attack_success_rate": 0.04, "robust_accuracy": 0.85},
        "curve": [
            {
                "prune_rate": 0.125,
                "threshold": 0.3,
                "scores": {"clean_accuracy": 0.9, "attack_success_rate": 0.5, "robust_accuracy": 0.4},
            }
        ],
    }
    baseline = baseline_of(record_of(repairs=[repair]), acceptances=[accepted()])
    baseline.write(tmp_path / "baseline.json")
    again = Baseline.read(tmp_path / "baseline.json")
    assert again.to_json() == baseline.to_json()
    assert again.acceptances == (accepted(),)
    assert again.repairs["nc_pruning-class_2"] == {
        "before": repair["before"],
        "after": {"clean_accuracy": 0.9123, "attack_success_rate": 0.04, "robust_accuracy": 0.85},
        "curve": [[0.125, 0.9, 0.5, 0.4]],
    }
    assert again.findings["audit::test_anomaly_index[patch_scan-class_0]"] == {
        "statistic": "anomaly_index",
        "verdict": "pass",
        "value": 0.2,
        "index": 0.2,
        "size": 12.35,
        "success_val": 0.875,
        "target_class": 0,
    }


def test_the_file_holds_neither_folders_nor_times_and_one_line_for_a_finding(tmp_path: Path) -> None:
    baseline_of(record_of(settings={"reference": "/home/someone/reference.json"})).write(tmp_path / "a.json")
    baseline_of(replace(record_of({**CLEAN, "patch_scan-class_1": -0.6}), seconds=3.0)).write(tmp_path / "b.json")
    first, second = ((tmp_path / name).read_text() for name in ("a.json", "b.json"))
    assert "someone" not in first
    assert "81.5" not in first
    assert '"reference": "reference.json"' in first
    changed = [line for line in first.splitlines() if line not in second.splitlines()]
    assert sorted(line.split('"')[1] for line in changed) == [
        "audit::test_anomaly_index[patch_scan-class_1]",
        "reference",
    ]
    assert json.loads(first)["model"]["file"] == "clean.safetensors"


def test_a_baseline_of_a_stranger_is_printable_and_as_comparable_as_its_record(tmp_path: Path) -> None:
    names = ["\x1b[31mshirt", "shoe\n::error::x", "bag\ud800"]
    record = record_of(subject={"class_names": names})
    file = tmp_path / "b.json"
    stored = {**baseline_of(record).to_json(), "verdict": "pass"}
    stored["data"]["class_names"] = names
    file.write_text(json.dumps(stored))
    again = Baseline.read(file)
    assert again.data["class_names"] == [r"\x1b[31mshirt", "shoe : :error::x", r"bag\ud800"]
    again.refuse(record)
    again.refuse(configuration({**record.subject, "class_names": names}, record.settings, again.detectors))


def test_a_detail_that_is_no_number_is_no_part_of_a_baseline() -> None:
    odd = finding_of("test_mine", "mine", 1.0, details={"size": "large", "index": [1], "success_val": True})
    assert set(baseline_of(record_of({}, odd)).findings["audit::test_mine"]) == {
        "statistic",
        "verdict",
        "value",
        "target_class",
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"subject": {"data_fingerprint": "e" * 64}},
            r"other clean images \(dddddddddddd there, eeeeeeeeeeee here\)",
        ),
        (
            {"subject": {"class_names": ["a", "b", "c"]}},
            r"class_names is \['shirt', .*\] there, \['a', 'b', 'c'\] here",
        ),
        ({"subject": {"num_classes": 4}}, "num_classes is 3 there, 4 here"),
        ({"settings": {"profile": "quick"}}, "profile is 'standard' there, 'quick' here"),
        ({"settings": {"seed": 1}}, "seed is 0 there, 1 here"),
        (
            {"settings": {"limits": {"anomaly_index": 3.0, "size_ratio": 0.33}}},
            "limits.anomaly_index is 2.0 there, 3.0 here",
        ),
        ({"settings": {"reference": "x/own.json"}}, "reference is '' there, 'own.json' here"),
        (
            {"detections": [{"detector": "patch_scan", "settings": "PatchScan(side=4)", "reference": "18 models"}]},
            r"detectors.patch_scan is 'PatchScan\(side=6\)' there",
        ),
        (
            {"detections": [{"detector": "patch_scan", "settings": "PatchScan(side=6)", "reference": "12 models; a"}]},
            "calibration.patch_scan is '18 models' there, '12 models' here",
        ),
    ],
)
def test_a_baseline_of_another_configuration_is_refused_with_the_difference_named(
    change: dict[str, Any], told: str
) -> None:
    with pytest.raises(BaselineError, match=told) as caught:
        compare(baseline_of(record_of()), record_of(**change), source="b.json")
    assert str(caught.value).startswith("b.json cannot be compared with this run: ")
    assert "\n" not in str(caught.value)


def test_every_difference_of_a_configuration_is_named_at_once() -> None:
    with pytest.raises(
        BaselineError, match=r"other clean images.*; num_classes is 3 .*; seed is 0 there, 1 here; run with"
    ):
        compare(
            baseline_of(record_of()),
            record_of(subject={"data_fingerprint": "e", "num_classes": 4}, settings={"seed": 1}),
        )


def test_a_configuration_can_be_refused_before_there_is_a_record() -> None:
    baseline, record = baseline_of(record_of()), record_of()
    baseline.refuse(configuration(record.subject, record.settings, {"patch_scan": "PatchScan(side=6)"}))
    with pytest.raises(BaselineError, match=r"detectors\.patch_scan"):
        baseline.refuse(configuration(record.subject, record.settings, {"patch_scan": "PatchScan(side=4)"}))
    with pytest.raises(BaselineError, match="steps is 240 there, 20 here"):
        baseline.refuse(configuration(record.subject, {**record.settings, "steps": 20}, {}))


def test_other_folders_names_of_files_and_devices_are_the_same_configuration() -> None:
    here = record_of(subject={"data": "other.npz", "model": "b.safetensors", "class_names": []})
    found = compare(
        baseline_of(record_of()), replace(here, environment={"backdoor_audit": "0.2.0", "device": "cuda:0"})
    )
    assert found.worse == ()
    assert list(found.notes) == [
        "the weights are those of the accepted model",
        "the accepted model was measured with version 0.1.0, this one with 0.2.0",
        "the accepted model was measured with device cpu, this one with cuda:0",
    ]


def test_findings_about_regressions_are_no_part_of_a_baseline() -> None:
    found = regressions(compare(baseline_of(record_of()), with_backdoor()))["anomaly_index"]
    assert isinstance(found, Finding)
    record = record_of(None, replace(found, audit="audit::test_regression[anomaly_index]"))
    assert not any("test_regression" in audit for audit in baseline_of(record).findings)


def test_a_signature_is_read_from_a_record_and_from_a_baseline_alike(tmp_path: Path) -> None:
    record_of().write(tmp_path / "audit.json")
    baseline_of(record_of()).write(tmp_path / "baseline.json")
    assert read_signature(tmp_path / "audit.json") == read_signature(tmp_path / "baseline.json")
    (tmp_path / "other.json").write_text('{"schema_version": 1}')
    with pytest.raises(Exception, match=r"other\.json") as caught:
        read_signature(tmp_path / "other.json")
    assert "\n" not in str(caught.value)

"""Records and baselines of one small model, by hand."""

from __future__ import annotations

from datetime import date
from typing import Any

from backdoor_audit import Record, Verdict
from backdoor_audit.baseline import Acceptance, Baseline, baseline_of
from backdoor_audit.evidence import Finding

TODAY = date(2027, 3, 1)
CLASSES = ("shirt", "shoe", "bag")
CLEAN = {
    "patch_scan-class_0": 0.2,
    "patch_scan-class_1": -0.7,
    "patch_scan-class_2": 0.9,
    "patch_scan-all_to_all": -1.0,
}


def index_of(item: str, index: float | None, verdict: str | None = None, **values: Any) -> Finding:
    """A finding about the anomaly index of one row, judged by the limit of 2 unless told otherwise."""
    number = item.rpartition("_")[2]
    found = verdict or ("inconclusive" if index is None else "fail" if index > 2 else "pass")
    given = {
        "audit": f"audit::test_anomaly_index[{item}]",
        "statistic": "anomaly_index",
        "value": index,
        "limit": 2.0,
        "reason": "why",
        "target_class": int(number) if number.isdecimal() else None,
        "details": {} if index is None else {"index": index, "size": 12.3456789, "success_val": 0.875, "steps": 7},
        **values,
    }
    return Finding(verdict=Verdict(found), **given)


def finding_of(audit: str, statistic: str, value: float | None, verdict: str = "pass", **values: Any) -> Finding:
    return Finding(
        **{"audit": f"audit::{audit}", "limit": None, "reason": "why", **values},
        statistic=statistic,
        value=value,
        verdict=Verdict(verdict),
    )


def record_of(
    indices: dict[str, float | None] | None = None,
    *others: Finding,
    accuracy: float = 0.93,
    subject: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **values: Any,
) -> Record:
    """A whole run over three classes and 1,000 images with these indices and this accuracy."""
    given: dict[str, Any] = {
        "subject": {
            "model": "/home/someone/clean.safetensors",
            "model_fingerprint": "aa11",
            "architecture": "small_cnn",
            "parameters": 70330,
            "num_classes": 3,
            "class_names": list(CLASSES),
            "image_shape": [1, 28, 28],
            "data": "/home/someone/images.npz",
            "data_fingerprint": "d" * 64,
            "images": 1000,
            "images_held_out": 500,
            **(subject or {}),
        },
        "settings": {
            "profile": "standard",
            "seed": 0,
            "index": "calibrated",
            "steps": 240,
            "restarts": 1,
            "limits": {"anomaly_index": 2.0, "size_ratio": 0.33},
            "reference": "",
            "trigger": "",
            "inconclusive": "fail",
            **(settings or {}),
        },
        "environment": {"backdoor_audit": "0.1.0", "device": "cpu"},
        "detections": [
            {"detector": "patch_scan", "settings": "PatchScan(side=6)", "reference": "18 models; twins: a 0.81"}
        ],
        "repairs": [],
        "skipped": {},
        "errors": {},
        "not_run": [],
        "not_tested": [],
        "seconds": 81.5,
    }
    findings = [
        finding_of("test_precondition[accuracy]", "clean_accuracy", accuracy),
        *(index_of(item, index) for item, index in (CLEAN if indices is None else indices).items()),
        *others,
    ]
    return Record(findings=findings, **{**given, **values})


def accepted(finding: str = "audit::test_anomaly_index[patch_scan-class_2]", expires: str = "2027-06-30") -> Acceptance:
    return Acceptance(finding=finding, reason="known since May", owner="Ada", expires=date.fromisoformat(expires))


def with_backdoor(index: float = 6.0) -> Record:
    return record_of({**CLEAN, "patch_scan-class_2": index})


def texts(changes: Any) -> list[str]:
    return [change.text for change in changes]


def known_backdoor(**values: str) -> Baseline:
    return baseline_of(with_backdoor(), acceptances=[accepted(**values)])


def flagged(index: float = 6.0) -> Finding:
    return index_of("patch_scan-class_2", index)

"""Hand-made findings and records, and names that no page may take for anything but text."""

from __future__ import annotations

from typing import Any

from backdoor_audit.evidence import POWER, Finding, Record, Verdict

HOSTILE = (
    "<script>alert(1)</script>",
    "</details>",
    "a|b",
    "`code`",
    "``",
    "[click](http://evil.example/x)",
    "![x](//evil.example/x.png)",
    "http://evil.example www.evil.example a@evil.example",
    "@team",
    "#12 GH-12 group/project!3",
    "**bold** __bold__ ~~gone~~",
    "back\\slash \\| \\",
    "{0} {name}",
    "# heading",
    "- item",
    "1. item",
    "&lt;b&gt;",
    "two\nlines",
    "$x$ and $y$",
    "<!-- hidden -->",
)


def finding(verdict: Verdict = Verdict.FAIL, **rest: Any) -> Finding:
    given: dict[str, Any] = {
        "audit": "audit::test_anomaly_index[neural_cleanse-class_1]",
        "statistic": "anomaly_index",
        "value": 2.5,
        "limit": 2.0,
        "reason": "class 1 (dog): a 3-pixel trigger sends 96% of held-out images there",
        "target_class": 1,
        "details": {"size": 3.0, "reached": True, "strongest": None, "curve": [1, 2]},
    }
    return Finding(verdict=verdict, **{**given, **rest})


def missed_canary() -> Finding:
    return finding(audit="audit::test_power[badnets]", statistic=POWER, value=0.0, limit=1.0, target_class=None)


def record(*findings: Finding, **rest: Any) -> Record:
    given: dict[str, Any] = {
        "subject": {
            "model": "models/m.safetensors",
            "model_fingerprint": "a" * 64,
            "architecture": "small_cnn",
            "class_names": ["cat", "dog"],
            "num_classes": 2,
            "data": "images.npz",
            "data_fingerprint": "b" * 64,
            "images": 200,
            "images_searched": 100,
            "images_held_out": 100,
        },
        "settings": {
            "model": "models/m.safetensors",
            "data": "images.npz",
            "seed": 3,
            "profile": "quick",
            "inconclusive": "fail",
        },
        "environment": {
            "backdoor_audit": "1.2.3",
            "torch": "2.6",
            "python": "3.12",
            "device": "cpu",
            "device_name": "CPU",
        },
        "detections": [{"detector": "neural_cleanse", "image_passes": 1234567, "seconds": 9.7, "recalled": True}],
        "repairs": [],
        "skipped": {},
        "errors": {},
        "not_run": [],
        "not_tested": ["warped triggers"],
        "seconds": 12.3,
    }
    return Record(findings=findings, **{**given, **rest})

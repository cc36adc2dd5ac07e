"""Records with every section filled in, as large as asked for: what a run of the whole gate leaves. The numbers mean nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from backdoor_audit.evidence import POWER, Finding, Limits, Record, Verdict
from backdoor_audit.questions.suite import shipped_limits

DETECTORS = (
    "neural_cleanse",
    "patch_scan",
    "additive",
    "smooth",
    "stripes",
    "warping",
    "source_scan",
    "relabelling",
    "consensus",
)


def png(shape: tuple[int, int, int], seed: int) -> str:
    """Noise, which no compression makes smaller: the worst case for the size of a page."""
    channels, height, width = shape
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def whole_record(
    classes: int = 10,
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    infected: Sequence[int] = (3,),
    names: Sequence[str] = (),
    **rest: Any,
) -> Record:
    """An audit of that many classes in which every detector flags the ``infected`` ones."""
    called = list(names) or [f"sign {number}" for number in range(classes)]
    findings = [_condition("accuracy", "clean_accuracy", 0.93), _condition("logits_finite", "finite", 0)]
    detections = []
    for detector in DETECTORS:
        targets: list[int | None] = [None] if detector == "relabelling" else [*range(classes)]
        scores = [_score(detector, target, target in infected) for target in targets]
        detections.append(_detection(detector, scores))
        findings += [_judged(detector, score, called) for score in scores]
    first = infected[0] if infected else None
    findings += [_repaired(name, first) for name in ("nc_pruning", "nc_unlearning") if first is not None]
    findings.append(_finding("audit::test_power[badnets]", POWER, 1.0, Verdict.PASS, "a canary was found"))
    given: dict[str, Any] = {
        "subject": _subject(classes, shape, called),
        "settings": _settings(),
        "environment": {
            "began": "2026-11-28 21:32 UTC",
            "backdoor_audit": "0.1.0",
            "code_fingerprint": "c" * 16,
            "python": "3.11",
            "torch": "2.6",
            "device": "cpu",
            "device_name": "CPU",
            "threads": 1,
        },
        "detections": detections,
        "repairs": [_repair(name, first) for name in ("nc_pruning", "nc_unlearning") if first is not None],
        "canaries": [_canary()],
        "findings": findings,
        "skipped": {"audit::test_false_negative_rate[strip]": "no filter fits"},
        "errors": {},
        "not_run": [],
        "not_tested": ["the training data"],
        "seconds": 163.4,
        "exhibits": {
            _bracket(finding): _exhibit(finding, shape, number)
            for number, finding in enumerate(findings)
            if finding.statistic == "anomaly_index"
            and (finding.audit.startswith("audit::test_anomaly_index[neural") or finding.verdict is not Verdict.PASS)
        },
        "activations": {f"class_{target}": _activation(target, shape) for target in infected},
        "properties": [_property("patch", Verdict.FAIL, shape), _property("batch_order", Verdict.PASS, None)],
        "baseline": _baseline(),
        "sections": {
            "brightness_of_patches": {
                "darkest": {"share": 0.25, "classes": [1, 2], "note": "<script>alert(1)</script>"},
                "lightest": {"share": None, "held": True},
            }
        },
    }
    return Record(**{**given, **rest})


def _bracket(finding: Finding) -> str:
    return finding.audit.partition("[")[2][:-1]


def _finding(audit: str, statistic: str, value: float, verdict: Verdict, reason: str, **rest: Any) -> Finding:
    return Finding(audit=audit, statistic=statistic, value=value, limit=2.0, verdict=verdict, reason=reason, **rest)


def _condition(name: str, statistic: str, value: float) -> Finding:
    return _finding(f"audit::test_precondition[{name}]", statistic, value, Verdict.PASS, "it holds")


def _score(detector: str, target: int | None, infected: bool) -> dict[str, Any]:
    place = -1 if target is None else target
    score: dict[str, Any] = dict.fromkeys(
        ("size", "size_ratio", "success_opt", "paper_index", "log_index", "steps", "margin", "landing", "strongest")
    )
    score |= {
        "target_class": target,
        "success_val": 0.97 if infected else 0.1,
        "index": 4.0 + place / 100 if infected else 0.5 - place / 100,
        "p_value": 0.0001 if infected else 1.0,
        "image_passes": 800,
        "reached": True,
    }
    if detector == "neural_cleanse":
        size = 6.2 if infected else 40.0 + place
        score |= {"size": size, "size_ratio": size / 45, "success_opt": 0.98, "paper_index": 3.2, "steps": 240}
    return score


def _detection(detector: str, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sized = detector == "neural_cleanse"
    return {
        "detector": detector,
        "settings": f"{detector}(steps=240)",
        "inconclusive": "",
        "coverage": "",
        "means": "a trigger" if sized else "a small patch",
        "rows": "source" if detector == "source_scan" else "target",
        "reference": "" if sized else "the shipped clean models",
        "p_value": 0.0001,
        "median_size": 45.0 if sized else None,
        "cut_size": 9.0 if sized else None,
        "seconds": 12.0,
        "blind_spots": ["triggers that differ from image to image"],
        "image_passes": 69372,
        "classes": list(scores),
        "recalled": False,
    }


def _judged(detector: str, score: Mapping[str, Any], names: Sequence[str]) -> Finding:
    target = score["target_class"]
    row = "all_to_all" if target is None else f"class_{target}"
    called = "all to all" if target is None else f"class {target} ({names[target]})"
    return _finding(
        f"audit::test_anomaly_index[{detector}-{'from_' if detector == 'source_scan' else ''}{row}]",
        "anomaly_index",
        score["index"],
        Verdict.FAIL if score["index"] > 2 else Verdict.PASS,
        f"{called}: what {detector} found sends {score['success_val']:.0%} of held-out images there",
        target_class=target,
        details={key: value for key, value in score.items() if value is not None},
    )


def _repaired(method: str, target: int | None) -> Finding:
    audit = f"audit::test_attack_success_rate_after[{method}]"
    return _finding(audit, "attack_success_rate", 0.02, Verdict.PASS, f"{method}: 100% before", target_class=target)


def _repair(method: str, target: int | None) -> dict[str, Any]:
    before = {"clean_accuracy": 0.94, "attack_success_rate": 1.0, "robust_accuracy": 0.0}
    after = {"clean_accuracy": 0.92, "attack_success_rate": 0.02, "robust_accuracy": 0.9}
    points = [(0.0, before), (0.1, after), (0.2, {**after, "clean_accuracy": 0.8})]
    curve = [{"prune_rate": rate, "threshold": None, "scores": scores} for rate, scores in points]
    return {
        "method": method,
        "settings": f"{method}()",
        "target_class": target,
        "before": before,
        "after": after,
        "curve": curve if method == "nc_pruning" else [],
        "note": "11 of 64 channels pruned",
        "not_applicable": "",
    }


def _canary() -> dict[str, Any]:
    return {
        "canary": "badnets",
        "settings": "Canary()",
        "target_class": 1,
        "dose": 4,
        "called": "patch of 4 px",
        "tried": True,
        "planted_by": "badnets",
        "reason": "",
        "accuracy_before": 0.93,
        "clean_accuracy": 0.91,
        "success_before": 0.02,
        "attack_success_rate": 0.94,
        "found_by": ["patch_scan"],
        "suspected_by": [],
        "others": [],
        "details": ["patch_scan: index 4.00"],
        "seconds": 39.2,
    }


def _exhibit(finding: Finding, shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
    image, mask = png(shape, seed), png((1, *shape[1:]), seed)
    example = _example(image, finding.target_class)
    return {
        "detector": _bracket(finding).partition("-")[0],
        "target_class": finding.target_class,
        "pictures": {"mask": mask, "pattern": image, "pattern under the mask": image},
        "examples": [example] * 4 if finding.verdict is not Verdict.PASS else [],
    }


def _example(image: str, target: int | None) -> dict[str, Any]:
    return {
        "label": 1,
        "image": image,
        "stamped": image,
        "predicted": 1,
        "confidence": 0.98,
        "predicted_stamped": target,
        "confidence_stamped": 0.99,
    }


def _activation(target: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    groups = ("clean", "synthetic", "known", "both")
    draw = np.random.default_rng(target)
    overlay = png((3, *shape[1:]), target)
    return {
        "target_class": target,
        "known": True,
        "layer": "features",
        "channels": 64,
        "norms": {norm: {group: draw.gamma(2, 3, 64).tolist() for group in groups} for norm in ("l1", "l2", "linf")},
        "separation": {"l1": 0.61, "l2": 0.72, "linf": 0.83},
        "grad_cam": [
            {
                "input": group,
                "label": label,
                "class": target if label == "target" else 1,
                "overlay": overlay,
                "inside": 0.31,
                "area": 0.011,
            }
            for group in groups
            for label in ("true", "target")
        ],
    }


def _property(name: str, verdict: Verdict, shape: tuple[int, int, int] | None) -> dict[str, Any]:
    return {
        "name": name,
        "verdict": verdict.value,
        "reason": f"{name} was looked at",
        "statistic": "steered_share",
        "value": 0.9,
        "limit": 0.5,
        "spec": '{"kind": "patch"}' if shape else None,
        "picture": png(shape, 5) if shape else None,
        "test": "def test_patch():\n    assert steered < 0.5\n" if shape else None,
        "examples": [_example(png(shape, 5), 0)] if shape else [],
    }


def _baseline() -> dict[str, Any]:
    accepted = {"finding": "audit::test_x[y]", "reason": "known", "owner": "somebody", "expires": "2030-01-31"}
    return {
        "file": "baseline.json",
        "accepted_model": "accepted.safetensors",
        "verdict": "fail",
        "worse": ["class 3: index 0.2 before, 4.0 now"],
        "better": [],
        "accepted": [accepted],
        "expired": [{**accepted, "finding": "audit::test_x[z]", "expires": "2020-01-31"}],
    }


def _subject(classes: int, shape: tuple[int, int, int], names: Sequence[str]) -> dict[str, Any]:
    return {
        "model": "models/m.safetensors",
        "model_fingerprint": "a" * 64,
        "loading": [],
        "architecture": "small_cnn",
        "parameters": 70330,
        "num_classes": classes,
        "class_names": list(names),
        "image_shape": list(shape),
        "mean": [0.5],
        "std": [0.25],
        "data": "images.npz",
        "data_fingerprint": "b" * 64,
        "images": 1000,
        "images_searched": 500,
        "images_held_out": 500,
    }


def _settings() -> dict[str, Any]:
    limits = {name: getattr(shipped_limits(), name) for name in Limits.__dataclass_fields__}
    return {
        "model": "models/m.safetensors",
        "data": "images.npz",
        "seed": 3,
        "profile": "standard",
        "inconclusive": "fail",
        "limits": limits,
    }

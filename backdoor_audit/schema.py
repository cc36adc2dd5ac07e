"""The JSON schema (2020-12) of ``audit.json``, for those who read records without this package.

What the package writes is described in full; settings, environment and the details of a finding may grow within a schema
version, so further keys are allowed there and nowhere else. ``docs/audit.schema.json`` is what ``python -m
backdoor_audit.schema`` prints. `Record.read` checks a file by it, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 2

READ_VERSIONS = (1, 2)
"""Versions that `Record.read` takes. The first one has neither questions nor the items of findings."""

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "number", "minimum": 0, "description": "seconds"}
_RATE: Schema = {"type": "number", "minimum": 0, "maximum": 1, "description": "a fraction, not percent"}
_HASH: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256, hexadecimal"}
_PNG: Schema = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
_VERDICT: Schema = {"$ref": "#/$defs/verdict"}
_CLASSES: Schema = {"type": "array", "items": _COUNT, "uniqueItems": True, "description": "class numbers"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_REASONS: Schema = {"type": "object", "additionalProperties": _TEXT, "description": "node id of an item to a reason"}


def schema() -> Schema:
    """The schema of `Record.to_json`, as builtins that `json.dumps` takes."""
    whole = _record(
        {
            "schema_version": {"const": SCHEMA_VERSION},
            "verdict": _VERDICT,
            "power": _or_null(_VERDICT, "of the canaries; null if none was planted"),
            "flagged_classes": _CLASSES,
            "suspected_classes": _CLASSES,
            "flagged_all_to_all": _FLAG,
            "suspected_all_to_all": _FLAG,
            "subject": _subject(),
            "settings": _open(_settings(), "the options of the run"),
            "environment": _open(_environment(), "versions and device"),
            "detections": _list("detection"),
            "repairs": _list("repair"),
            "canaries": _list("canary"),
            "findings": _list("finding"),
            "skipped": _REASONS,
            "errors": _REASONS,
            "not_run": {**_TEXTS, "description": "node ids"},
            "not_tested": {**_TEXTS, "description": "what this run says nothing about"},
            "seconds": _SECONDS,
        },
        optional={
            "exhibits": {"type": "object", "additionalProperties": {"$ref": "#/$defs/exhibit"}},
            "activations": {"type": "object", "additionalProperties": {"$ref": "#/$defs/activation"}},
            "properties": _list("property"),
            "baseline": _or_null({"$ref": "#/$defs/baseline"}, "null if the run was compared with none"),
            "advisory": {**_list("finding"), "description": "of parts of other packages; they decide nothing"},
            "rates": {**_TEXTS, "description": "how often this audit is right, as measured: one sentence each"},
            "questions": {
                "type": "object",
                "additionalProperties": {"$ref": "#/$defs/question"},
                "description": "what was asked, by the name of the question",
            },
            "sections": {
                "type": "object",
                "additionalProperties": {"type": "object"},
                "description": "what questions of other packages and projects have to show, by the name of the question",
            },
        },
    )
    definitions = {
        "verdict": {"enum": ["pass", "fail", "inconclusive"]},
        "finding": _finding(),
        "item": _item(),
        "question": _question(),
        "detection": _detection(),
        "class_score": _class_score(),
        "scores": _record(dict.fromkeys(("clean_accuracy", "attack_success_rate", "robust_accuracy"), _RATE)),
        "repair": _repair(),
        "canary": _canary(),
        "example": _example(),
        "exhibit": _exhibit(),
        "activation": _activation(),
        "property": _property(),
        "baseline": _baseline(),
        "acceptance": _acceptance(),
    }
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Record of one backdoor audit (audit.json)",
        "description": "Lengths are pixels, times seconds, rates fractions in [0, 1]. A number that was not finite is null.",
    }
    return {**head, **whole, "$defs": definitions}


def _finding() -> Schema:
    return _record(
        {
            "audit": {**_TEXT, "minLength": 1, "description": "node id of the item"},
            "statistic": _TEXT,
            "value": _or_null(_NUMBER),
            "limit": _or_null(_NUMBER),
            "verdict": _VERDICT,
            "reason": _TEXT,
            "settings": _TEXT,
            "target_class": _or_null(_COUNT),
            "details": {"type": "object"},
            "artifacts": {
                "type": "object",
                "additionalProperties": _TEXT,
                "description": "title to a file in the report's folder",
            },
        },
        optional={"item": {"$ref": "#/$defs/item"}},
    )


def _item() -> Schema:
    return _record(
        {
            "question": {**_TEXT, "description": "empty for a test of a project's own"},
            "asked_of": {**_TEXT, "description": "the detector, property, filter, repair, canary or condition"},
            "row": {**_TEXT, "description": "class_N, from_class_N, all_to_all, or empty"},
        }
    )


def _question() -> Schema:
    words = dict.fromkeys(("asks", "holds", "advice", "topic", "compared"), _TEXT)
    return _record(
        {
            **words,
            "about": {"enum": ["model", "audit", "remedy", "change"], "description": "what a failure speaks against"},
            "counts": {"type": "object", "additionalProperties": _TEXT, "description": "statistic to what it counts"},
            "references": {
                "type": "object",
                "additionalProperties": _TEXTS,
                "description": "statistic to identifiers in frameworks",
            },
            "settings": {**_TEXT, "description": "the question with its limits"},
            "file": {**_TEXT, "description": "the file of the suite that asks it"},
            "sha256": _HASH,
        }
    )


def _subject() -> Schema:
    """Model and images; a run that broke before it had loaded both knows nothing of them."""
    known = _record(
        {
            "model": {**_TEXT, "description": "path as given, or the class of a module"},
            "model_fingerprint": _HASH,
            "loading": {**_TEXTS, "description": "what loading had to assume"},
            "architecture": _TEXT,
            "parameters": _COUNT,
            "num_classes": _COUNT,
            "class_names": _TEXTS,
            "image_shape": {"type": "array", "items": _COUNT, "minItems": 3, "maxItems": 3, "description": "c, h, w"},
            "mean": _numbers(),
            "std": _numbers(),
            "data": _TEXT,
            "data_fingerprint": _HASH,
            "images": _COUNT,
            "images_searched": _COUNT,
            "images_held_out": _COUNT,
        }
    )
    return {"anyOf": [{"type": "object", "maxProperties": 0}, known]}


def _settings() -> Schema:
    return {
        "seed": _COUNT,
        "profile": {"enum": ["quick", "standard", "thorough"]},
        "index": {"enum": ["calibrated", "paper"]},
        "inconclusive": {"enum": ["fail", "allow"]},
        "limits": {"type": "object", "additionalProperties": _NUMBER, "description": "what findings were judged by"},
    }


def _environment() -> Schema:
    texts = dict.fromkeys(("backdoor_audit", "python", "torch", "device", "device_name"), _TEXT)
    plugin = _open(
        {
            **dict.fromkeys(("group", "name", "distribution", "version", "code", "file"), _TEXT),
            "false_alarm_rate": _or_null(_RATE, "of clean models, by its maker's word; null: it is advisory"),
        },
        "a part of another package",
    )
    return {
        **texts,
        "began": {**_TEXT, "description": "when the run began, UTC"},
        "plugins": {"type": "array", "items": plugin},
    }


def _detection() -> Schema:
    return _record(
        {
            "detector": _TEXT,
            "settings": _TEXT,
            "inconclusive": {**_TEXT, "description": "why there is no answer; empty if there is one"},
            "coverage": _TEXT,
            "criterion": {**_TEXT, "description": "when a search has converged"},
            "unconverged": {**_TEXT, "description": "why too few have for any class to pass; empty if enough have"},
            "unusual": {**_TEXT, "description": "that classes differ more than in clean models; empty if they do not"},
            "means": _TEXT,
            "rows": {"enum": ["target", "source"]},
            "reference": _TEXT,
            "p_value": _or_null(_RATE),
            "median_size": _or_null(_NUMBER),
            "cut_size": _or_null(_NUMBER),
            "seconds": _SECONDS,
            "blind_spots": _TEXTS,
            "image_passes": _COUNT,
            "classes": _list("class_score"),
            "recalled": {**_FLAG, "description": "whether it was taken from an earlier run"},
        }
    )


def _class_score() -> Schema:
    numbers = (
        "index",
        "size",
        "size_ratio",
        "paper_index",
        "log_index",
        "margin",
        "natural_margin",
        "excess",
        "deviation",
        "shrinkage",
        "rising",
    )
    rates = ("success_val", "p_value", "success_opt", "natural_success")
    return _record(
        {
            "target_class": _or_null(_COUNT, "null: every class goes to the next"),
            **{name: _or_null(_RATE) for name in rates},
            **{name: _or_null(_NUMBER) for name in numbers},
            "image_passes": _COUNT,
            "reached": _FLAG,
            "steps": _or_null(_COUNT),
            "landing": _or_null(_COUNT),
            "strongest": _or_null(_TEXT),
            "unconverged": {**_TEXT, "description": "why the search had not come to its end; empty if it had"},
        },
        optional={
            "kind": {"enum": ["size", "margin"], "description": "what was measured; what the other kind does is null"}
        },
    )


def _repair() -> Schema:
    scores: Schema = {"$ref": "#/$defs/scores"}
    point = _record({"prune_rate": _RATE, "threshold": _or_null(_NUMBER), "scores": scores})
    return _record(
        {
            "method": _TEXT,
            "settings": _TEXT,
            "target_class": _COUNT,
            "before": _or_null(scores),
            "after": _or_null(scores),
            "curve": {"type": "array", "items": point},
            "note": _TEXT,
            "not_applicable": _TEXT,
        }
    )


def _canary() -> Schema:
    """One dose of one kind for one class. The finding of `test_power` says what that comes to."""
    rates = ("accuracy_before", "clean_accuracy", "success_before", "attack_success_rate")
    return _record(
        {
            "canary": {**_TEXT, "description": "the kind: name of the attack"},
            "settings": _TEXT,
            "target_class": _COUNT,
            "dose": {"type": "number", "exclusiveMinimum": 0, "description": "how strong; what it counts is in called"},
            "called": {**_TEXT, "description": "what was planted, with its dose, in words"},
            "tried": {**_FLAG, "description": "false if there was no time for it, or a precondition does not hold"},
            "planted_by": {**_TEXT, "description": "empty if it could not be implanted"},
            "reason": _TEXT,
            **{name: _or_null(_RATE) for name in rates},
            "found_by": {
                **_TEXTS,
                "description": "the detector with which the search ended; empty if none flagged the class",
            },
            "suspected_by": _TEXTS,
            "others": {"type": "array", "items": _or_null(_COUNT)},
            "details": _TEXTS,
            "seconds": _SECONDS,
        }
    )


def _example() -> Schema:
    return _record(
        {
            **dict.fromkeys(("label", "predicted", "predicted_stamped"), _COUNT),
            **dict.fromkeys(("confidence", "confidence_stamped"), _RATE),
            **dict.fromkeys(("image", "stamped"), _PNG),
        }
    )


def _exhibit() -> Schema:
    return _record(
        {
            "detector": _TEXT,
            "target_class": _or_null(_COUNT),
            "pictures": {"type": "object", "additionalProperties": _PNG},
            "examples": _list("example"),
        }
    )


def _activation() -> Schema:
    """Either the channel norms and overlays of one trigger, or why the network has none."""
    norms = ("l1", "l2", "linf")
    groups: Schema = {
        "type": "object",
        "additionalProperties": {"type": "array", "items": _or_null(_NUMBER)},
        "description": "group to a mean per channel",
    }
    overlay = _record(
        {
            "input": _TEXT,
            "label": {"enum": ["true", "target"]},
            "class": _COUNT,
            "overlay": _PNG,
            "inside": _or_null(_RATE, "share of the map's mass inside the trigger"),
            "area": _or_null(_RATE, "the trigger's share of the image"),
        }
    )
    measured = _record(
        {
            "target_class": _COUNT,
            "known": _FLAG,
            "layer": _TEXT,
            "channels": _COUNT,
            "norms": _record(dict.fromkeys(norms, groups)),
            "separation": _record({name: _or_null(_RATE) for name in norms}),
            "grad_cam": {"type": "array", "items": overlay},
        }
    )
    return {"anyOf": [measured, _record({"target_class": _COUNT, "unavailable": _TEXT}, optional={"known": _FLAG})]}


def _property() -> Schema:
    return _open(
        {
            "name": _TEXT,
            "verdict": _VERDICT,
            "reason": _TEXT,
            "statistic": _TEXT,
            "value": _or_null(_NUMBER),
            "limit": _or_null(_NUMBER),
            "spec": _or_null({}, "the trigger that breaks it"),
            "picture": _or_null(_PNG),
            "test": _or_null(_TEXT, "a pytest test to paste"),
            "examples": _list("example"),
        },
        "one property and the counterexample to it",
    )


def _acceptance() -> Schema:
    return _open(dict.fromkeys(("finding", "reason", "owner", "expires"), _TEXT), "a finding and who answers for it")


def _baseline() -> Schema:
    return _open(
        {
            "file": _TEXT,
            "accepted_model": _or_null(_TEXT),
            "verdict": _VERDICT,
            "worse": _TEXTS,
            "better": _TEXTS,
            "accepted": _list("acceptance"),
            "expired": _list("acceptance"),
            "notes": _TEXTS,
            "unused": {**_TEXTS, "description": "acceptances that no finding needs any more"},
        },
        "the difference to the accepted model",
    )


def _record(members: Mapping[str, Schema], *, optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with exactly these members, of which the optional ones may be missing."""
    return {
        "type": "object",
        "properties": {**members, **(optional or {})},
        "required": list(members),
        "additionalProperties": False,
    }


def _open(members: Mapping[str, Schema], description: str) -> Schema:
    """An object that may have further members, or lack some of these."""
    return {"type": "object", "properties": dict(members), "description": description}


def _list(definition: str) -> Schema:
    return {"type": "array", "items": {"$ref": f"#/$defs/{definition}"}}


def _numbers() -> Schema:
    return {"type": "array", "items": _NUMBER}


def _or_null(given: Schema, description: str = "") -> Schema:
    return {"anyOf": [given, {"type": "null"}], **({"description": description} if description else {})}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))

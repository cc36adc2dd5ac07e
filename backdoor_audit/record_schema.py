"""The JSON schema (2020-12) of ``audit.json``, for those who read records without this package.

The fields of a class that is stored are described by their types, where they stand. What is written here are the mappings that
no class holds, and what is stored beside the fields of one. Settings, environment and the details of a finding may grow within a
schema version, so further keys are allowed there and nowhere else. `Record.read` checks a file by it, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from backdoor_audit.item import Item
from backdoor_audit.record_types import (
    Count,
    Rate,
    Scores,
    StoredCanary,
    StoredDetection,
    StoredMargin,
    StoredRepair,
    StoredRow,
    StoredScreening,
    StoredSize,
)
from backdoor_audit.schema_of import Definitions, Schema, record
from backdoor_audit.words import Words

SCHEMA_VERSION = 2

READ_VERSIONS = (1, 2)
"""Versions that `Record.read` takes. The first one has neither questions nor the items of findings."""

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_COUNT = Definitions({}).of(Count)
_RATE = Definitions({}).of(Rate)
_HASH: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256, hexadecimal"}
_PNG: Schema = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
_VERDICT: Schema = {"$ref": "#/$defs/verdict"}
_CLASSES: Schema = {"type": "array", "items": _COUNT, "uniqueItems": True, "description": "class numbers"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}


def record_schema(whole: type, finding: type, verdict: type) -> Schema:
    """The schema of the record of an audit, from its class and those of its findings and their verdicts."""
    types = Definitions({verdict: "verdict", finding: "finding", Item: "item", Scores: "scores"})
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Record of one backdoor audit (audit.json)",
        "description": "Lengths are pixels, times seconds, rates fractions in [0, 1]. A number that was not finite is null.",
    }
    definitions = {
        "verdict": Definitions({}).of(verdict),
        "finding": types.whole(finding),
        "item": types.whole(Item, {"row": {**_TEXT, "description": "class_N, from_class_N, all_to_all, or empty"}}),
        "question": types.whole(Words, _of_suite()),
        "detection": types.whole(StoredDetection, _of_detection()),
        "class_score": _class_score(types),
        "scores": types.whole(Scores),
        "repair": types.whole(StoredRepair),
        "canary": types.whole(StoredCanary, {"others": {"type": "array", "items": _or_null(_COUNT)}}),
        "example": _example(),
        "exhibit": _exhibit(),
        "activation": _activation(),
        "property": _property(),
        "baseline": _baseline(),
        "acceptance": _acceptance(),
    }
    return {**head, **types.whole(whole, _of_record()), "$defs": definitions}


def _of_record() -> dict[str, Schema]:
    """What a record spells out for readers that do not judge again, and its parts that are mappings."""
    return {
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
        "exhibits": _by_name("exhibit"),
        "activations": _by_name("activation"),
        "properties": _list("property"),
        "baseline": _or_null({"$ref": "#/$defs/baseline"}, "null if the run was compared with none"),
        "questions": {**_by_name("question"), "description": "what was asked, by the name of the question"},
    }


def _of_suite() -> dict[str, Schema]:
    """What a record says of a question beside its words."""
    return {
        "settings": {**_TEXT, "description": "the question with its limits"},
        "file": {**_TEXT, "description": "the file of the suite that asks it"},
        "sha256": _HASH,
    }


def _subject() -> Schema:
    """Model and images; a run that broke before it had loaded both knows nothing of them."""
    known = record(
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


def _of_detection() -> dict[str, Schema]:
    """What a record says of a detection beside its own fields."""
    return {
        "image_passes": _COUNT,
        "classes": _list("class_score"),
        "recalled": {**_FLAG, "description": "whether it was taken from an earlier run"},
    }


def _class_score(types: Definitions) -> Schema:
    """A row with the numbers of all kinds; whatever another kind measures, and a share of no image at all, is null."""
    measured = {**types.members(StoredSize), **types.members(StoredScreening), **types.members(StoredMargin)}
    more = {
        "success_val": _or_null(_RATE),
        **{name: part if "anyOf" in part else _or_null(part) for name, part in measured.items()},
        "stopped": measured["stopped"],
        "reached": measured["reached"],  # true where nothing has to be reached
        "kind": {
            "enum": ["size", "margin", "screening"],
            "description": "what was measured; what the other kind does is null",
        },
    }
    return types.whole(StoredRow, more, later=("kind", "stopped"))


def _example() -> Schema:
    return record(
        {
            **dict.fromkeys(("label", "predicted", "predicted_stamped"), _COUNT),
            **dict.fromkeys(("confidence", "confidence_stamped"), _RATE),
            **dict.fromkeys(("image", "stamped"), _PNG),
        }
    )


def _exhibit() -> Schema:
    return record(
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
    overlay = record(
        {
            "input": _TEXT,
            "label": {"enum": ["true", "target"]},
            "class": _COUNT,
            "overlay": _PNG,
            "inside": _or_null(_RATE, "share of the map's mass inside the trigger"),
            "area": _or_null(_RATE, "the trigger's share of the image"),
        }
    )
    measured = record(
        {
            "target_class": _COUNT,
            "known": _FLAG,
            "layer": _TEXT,
            "channels": _COUNT,
            "norms": record(dict.fromkeys(norms, groups)),
            "separation": record({name: _or_null(_RATE) for name in norms}),
            "grad_cam": {"type": "array", "items": overlay},
        }
    )
    absent = {"target_class": _COUNT, "known": _FLAG, "unavailable": _TEXT}
    return {"anyOf": [measured, record(absent, optional=["known"])]}


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


def _open(members: Mapping[str, Schema], description: str) -> Schema:
    """An object that may have further members, or lack some of these."""
    return {"type": "object", "properties": dict(members), "description": description}


def _list(definition: str) -> Schema:
    return {"type": "array", "items": {"$ref": f"#/$defs/{definition}"}}


def _by_name(definition: str) -> Schema:
    return {"type": "object", "additionalProperties": {"$ref": f"#/$defs/{definition}"}}


def _numbers() -> Schema:
    return {"type": "array", "items": _NUMBER}


def _or_null(given: Schema, description: str = "") -> Schema:
    return {"anyOf": [given, {"type": "null"}], **({"description": description} if description else {})}

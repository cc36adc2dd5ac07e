"""The structure of a baseline file, as a JSON schema; acceptances, which people write, are read with more to say about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 1

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_MAYBE_TEXT: Schema = {"anyOf": [_TEXT, {"type": "null"}]}
_NUMBER: Schema = {"anyOf": [{"type": "number"}, {"type": "null"}]}
_COUNT: Schema = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}


def _record(members: Mapping[str, Schema], *, optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**members, **(optional or {})},
        "required": list(members),
        "additionalProperties": False,
    }


_FINDING = _record(
    {
        "statistic": _TEXT,
        "verdict": {"enum": ["pass", "fail", "inconclusive"]},
        "value": _NUMBER,
        "target_class": _COUNT,
    },
    optional=dict.fromkeys(("index", "size", "success_val"), _NUMBER),
)
_SCORES = _record(dict.fromkeys(("clean_accuracy", "attack_success_rate", "robust_accuracy"), _NUMBER))
_POINT: Schema = {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4}
_REPAIR = _record({"before": _SCORES, "after": _SCORES, "curve": {"type": "array", "items": _POINT}})

SCHEMA = _record(
    {
        "schema_version": {"const": SCHEMA_VERSION},
        "model": _record(
            {"file": _TEXT, "model_fingerprint": _MAYBE_TEXT, "architecture": _MAYBE_TEXT, "parameters": _COUNT}
        ),
        "data": _record(
            {
                "data_fingerprint": _MAYBE_TEXT,
                "class_names": {"type": "array", "items": _TEXT},
                "num_classes": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
                "image_shape": {"anyOf": [{"type": "array", "items": _COUNT}, {"type": "null"}]},
                "images": _COUNT,
                "images_held_out": _COUNT,
            }
        ),
        "settings": {"type": "object"},
        "detectors": _TEXTS,
        "calibration": _TEXTS,
        "environment": {**_record(dict.fromkeys(("backdoor_audit", "device"), _TEXT)), "additionalProperties": _TEXT},
        "verdict": {"enum": ["pass", "fail", "inconclusive"]},
        "findings": {"type": "object", "additionalProperties": _FINDING},
        "acceptances": {"type": "array"},
    },
    optional={"repairs": {"type": "object", "additionalProperties": _REPAIR}, "parts": _TEXTS},
)

"""The structure of a baseline file, as a JSON schema; acceptances, which people write, are read with more to say about them."""

from __future__ import annotations

from backdoor_audit.schema_of import Schema, record

SCHEMA_VERSION = 1

_TEXT: Schema = {"type": "string"}
_MAYBE_TEXT: Schema = {"anyOf": [_TEXT, {"type": "null"}]}
_NUMBER: Schema = {"anyOf": [{"type": "number"}, {"type": "null"}]}
_COUNT: Schema = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
KEPT = ("index", "size", "success_val")
_FINDING = record(
    {
        "statistic": _TEXT,
        "verdict": {"enum": ["pass", "fail", "inconclusive"]},
        "value": _NUMBER,
        "target_class": _COUNT,
        **dict.fromkeys(KEPT, _NUMBER),
    },
    optional=KEPT,
)
_SCORES = record(dict.fromkeys(("clean_accuracy", "attack_success_rate", "robust_accuracy"), _NUMBER))
_POINT: Schema = {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4}
_REPAIR = record({"before": _SCORES, "after": _SCORES, "curve": {"type": "array", "items": _POINT}})

SCHEMA = record(
    {
        "schema_version": {"const": SCHEMA_VERSION},
        "model": record(
            {"file": _TEXT, "model_fingerprint": _MAYBE_TEXT, "architecture": _MAYBE_TEXT, "parameters": _COUNT}
        ),
        "data": record(
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
        "environment": {**record(dict.fromkeys(("backdoor_audit", "device"), _TEXT)), "additionalProperties": _TEXT},
        "verdict": {"enum": ["pass", "fail", "inconclusive"]},
        "findings": {"type": "object", "additionalProperties": _FINDING},
        "acceptances": {"type": "array"},
        "repairs": {"type": "object", "additionalProperties": _REPAIR},
        "parts": _TEXTS,
    },
    optional=("repairs", "parts"),
)

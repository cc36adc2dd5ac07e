"""Whether content that was read has the structure that is relied on later: JSON schemas, as far as this package uses them.

Readers check once, here, before anything is made of what they read, so that a value of the wrong kind is one clause with its
place and never a surprise in the middle of a page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

_LARGEST = 2**63  # of whole numbers: what other languages hold
_SHOWN = 60  # characters of a text, or of a number, inside a message
_KINDS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "string": ("a text", (str,)),
    "number": ("a number", (int, float)),
    "integer": ("a whole number", (int,)),
    "boolean": ("true or false", (bool,)),
    "object": ("an object", (dict,)),
    "array": ("a list", (list,)),
    "null": ("null", (type(None),)),
}

Schema = Mapping[str, Any]
Needed = Callable[[str, Schema], Collection[str]]


def required(name: str, schema: Schema) -> Collection[str]:
    """The keys that the schema itself requires."""
    del name
    keys: Collection[str] = schema.get("required", ())
    return keys


def misfit(value: Any, schema: Schema, *, needed: Needed = required) -> str:
    """What is wrong with a value that came from JSON, as ``place: found where wanted belongs``; empty if it fits the schema.

    ``needed`` says which keys an object must have, from the name of its definition (empty for the outermost) and its schema.
    Patterns of texts are not looked at.
    """
    return _Check(schema.get("$defs", {}), needed).misfit(value, schema, "", "")


def brief(value: object) -> str:
    """A value from outside in a few words, whatever it is and however large."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else f"{value[: _SHOWN - 3]!r}... ({len(value)} characters)"
    if isinstance(value, (bool, float)) or value is None:
        return repr(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 3 * _SHOWN else f"a number of {value.bit_length()} bits"
    if isinstance(value, (Mapping, list, tuple)):
        return f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    return f"a {type(value).__name__}"


class _Check:
    """The definitions that a schema refers to, and which keys are needed."""

    def __init__(self, definitions: Mapping[str, Schema], needed: Needed) -> None:
        self.definitions, self.needed = definitions, needed

    def misfit(self, value: Any, schema: Schema, place: str, name: str) -> str:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self.misfit(value, self.definitions[name], place, name)
        if "anyOf" in schema:
            return self._any(value, schema["anyOf"], place)
        if not self._is_one(value, schema):
            return f"{place or 'the whole'}: {brief(value)} where {self._wanted(schema)} belongs"
        if isinstance(value, dict):
            return self._object(value, schema, place, name)
        if isinstance(value, list) and "items" in schema:
            parts = (self.misfit(part, schema["items"], f"{place}[{at}]", "-") for at, part in enumerate(value))
            return next(filter(None, parts), "")
        return ""

    def _any(self, value: Any, schemas: Sequence[Schema], place: str) -> str:
        told = [self.misfit(value, schema, place, "-") for schema in schemas]
        if not all(told):
            return ""
        inside = [said for said in told if not said.startswith(f"{place or 'the whole'}: ")]
        if inside:
            return inside[0]
        return f"{place or 'the whole'}: {brief(value)} where {' or '.join(map(self._wanted, schemas))} belongs"

    def _object(self, value: Mapping[str, Any], schema: Schema, place: str, name: str) -> str:
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key in self.needed(name, schema):
            if key not in value:
                return f"a key is missing: {_inside(place, key)}"
        for key, entry in value.items():
            wanted = known.get(key, others)
            if wanted is False:
                return f"{_inside(place, key)}: a key that is not known"
            if wanted is not True and (said := self.misfit(entry, wanted, _inside(place, key), "-")):
                return said
        return ""

    def _is_one(self, value: Any, schema: Schema) -> bool:
        """Whether the value itself, without its parts, is what the schema says."""
        if "const" in schema:
            return type(value) is type(schema["const"]) and bool(value == schema["const"])
        if "enum" in schema:
            return isinstance(value, str) and value in schema["enum"]
        kind = schema.get("type")
        if kind is None:
            return True
        fits = isinstance(value, _KINDS[kind][1]) and (kind == "boolean" or not isinstance(value, bool))
        return fits and _in_bounds(value, schema)

    def _wanted(self, schema: Schema) -> str:
        if "$ref" in schema:
            return self._wanted(self.definitions[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return " or ".join(map(self._wanted, schema["anyOf"]))
        if "const" in schema or "enum" in schema:
            return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
        words = _KINDS[schema["type"]][0] if "type" in schema else "anything"
        if "maximum" in schema:
            return f"{words} in [{schema.get('minimum', '')}, {schema['maximum']}]"
        if schema.get("minItems") is not None and schema.get("minItems") == schema.get("maxItems"):
            return f"{words} of {schema['minItems']}"
        return f"{words} of at least {schema['minimum']}" if "minimum" in schema else words


def _in_bounds(value: Any, schema: Schema) -> bool:
    """Whether a number, or the length of a list or an object, is as the schema allows."""
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        return False
    if isinstance(value, (int, float)):
        return bool(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
    if isinstance(value, list):
        return bool(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf))
    return not isinstance(value, dict) or len(value) <= schema.get("maxProperties", math.inf)


def _inside(place: str, key: str) -> str:
    """The place of an entry of an object; a long or odd key in brackets."""
    if key.isidentifier() and len(key) <= _SHOWN:
        return f"{place}.{key}" if place else key
    return f"{place}[{brief(key)}]"

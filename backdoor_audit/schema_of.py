"""The JSON schema of a stored value from its type: what a class says of its fields nobody writes down a second time.

In ``Annotated`` a text describes a value, `Stored` says what else its type cannot, and `LATER` that older files lack it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

Schema = dict[str, Any]

_KINDS: Mapping[object, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    NoneType: "null",
}


class Stored:
    """Keywords of a schema that a type does not say: bounds, a pattern, an encoding."""

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords

    def __repr__(self) -> str:
        return f"Stored({', '.join(f'{name}={value!r}' for name, value in self.keywords.items())})"


LATER = Stored()
"""Marks a field that came later than its class: a file from before lacks it."""


class Definitions:
    """Schemas of types, in which the ``named`` ones are referred to by their name among the definitions."""

    def __init__(self, named: Mapping[type, str]) -> None:
        self.named = named

    def of(self, kind: Any) -> Schema:
        """The schema of a value of this type. Raises `TypeError` for a type that says nothing of what is stored."""
        if kind in self.named:
            return {"$ref": f"#/$defs/{self.named[kind]}"}
        if is_dataclass(kind):
            return self.whole(kind)
        outer, inner = get_origin(kind), get_args(kind)
        if outer is Annotated:
            return {**self.of(inner[0]), **_said(inner[1:])}
        return self._composed(outer, inner) if outer else _simple(kind)

    def _composed(self, outer: Any, inner: Sequence[Any]) -> Schema:
        if outer in (Union, UnionType):
            return {"anyOf": [self.of(part) for part in inner]}
        if issubclass(outer, Mapping):
            return {"type": "object", **({} if inner[1] is Any else {"additionalProperties": self.of(inner[1])})}
        return {"type": "array", "items": self.of(inner[0])}

    def members(self, kind: Any) -> dict[str, Schema]:
        """The schema of every field of a dataclass."""
        return {name: self.of(hint) for name, hint in _hints(kind).items()}

    def whole(self, kind: Any, more: Mapping[str, Schema] | None = None, *, later: Collection[str] = ()) -> Schema:
        """An object with the fields of a dataclass and ``more``, which also replaces what is stored in another form.

        What came ``later``, as fields with `LATER` did, may be missing.
        """
        new = [name for name, hint in _hints(kind).items() if LATER in getattr(hint, "__metadata__", ())]
        return record({**self.members(kind), **(more or {})}, optional={*later, *new})


def record(members: Mapping[str, Schema], *, optional: Collection[str] = ()) -> Schema:
    """An object with exactly these members, of which the optional ones may be missing."""
    return {
        "type": "object",
        "properties": dict(members),
        "required": [name for name in members if name not in optional],
        "additionalProperties": False,
    }


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    """What a dataclass says of its fields."""
    hints = get_type_hints(kind, include_extras=True)
    return {entry.name: hints[entry.name] for entry in fields(kind)}


def _simple(kind: Any) -> Schema:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [entry.value for entry in kind]}
    if kind not in _KINDS:
        raise TypeError(f"{kind!r} does not say what a record holds of it")
    return {"type": _KINDS[kind]}


def _said(words: Sequence[Any]) -> Schema:
    """What ``Annotated`` adds to a type; of two descriptions the outer one."""
    said: Schema = {}
    for word in words:
        said |= {"description": word} if isinstance(word, str) else word.keywords
    return said

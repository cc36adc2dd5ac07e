"""A field of a class that is stored is part of the schema of a record, and nothing else has to be written for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any

import pytest

from backdoor_audit import record_schema
from backdoor_audit.evidence import Finding, Record, Verdict
from backdoor_audit.record_types import Rate
from backdoor_audit.schema import schema
from backdoor_audit.schema_of import LATER

STORED = [
    ("Scores", "scores"),
    ("StoredRepair", "repair"),
    ("StoredCanary", "canary"),
    ("StoredDetection", "detection"),
    ("StoredRow", "class_score"),
    ("Item", "item"),
    ("Words", "question"),
]


def with_field(kind: type, *field: Any) -> type:
    """The class with one more field, as if somebody had written it there."""
    return make_dataclass(f"Wider{kind.__name__}", [field], bases=(kind,), frozen=True, kw_only=True)


@pytest.mark.parametrize(("name", "definition"), STORED)
def test_a_new_field_of_a_stored_class_is_in_the_schema_by_itself(
    name: str, definition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = Annotated[Rate | None, "of what was looked at"]
    before = schema()["$defs"][definition]["required"]
    monkeypatch.setattr(record_schema, name, with_field(getattr(record_schema, name), "share", share))
    described = schema()["$defs"][definition]
    rate = {"type": "number", "minimum": 0, "maximum": 1, "description": "a fraction, not percent"}
    assert described["properties"]["share"] == {
        "anyOf": [rate, {"type": "null"}],
        "description": "of what was looked at",
    }
    assert set(described["required"]) == {*before, "share"}


def test_a_kind_of_row_has_its_new_field_in_the_schema_which_is_null_in_rows_of_other_kinds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, field in (("StoredSize", "height"), ("StoredMargin", "breadth")):
        monkeypatch.setattr(record_schema, name, with_field(getattr(record_schema, name), field, float))
    described = schema()["$defs"]["class_score"]["properties"]
    assert described["height"] == described["breadth"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}


def test_new_fields_of_a_finding_and_of_a_record_are_in_the_schema_and_older_files_may_lack_them() -> None:
    remarks = ("remarks", Annotated[Sequence[str], LATER, "in words"], ())
    found = record_schema.record_schema(with_field(Record, *remarks), with_field(Finding, *remarks), Verdict)
    for described in (found, found["$defs"]["finding"]):
        texts = {"type": "array", "items": {"type": "string"}, "description": "in words"}
        assert described["properties"]["remarks"] == texts
        assert "remarks" not in described["required"]


def test_a_field_whose_type_does_not_say_what_is_stored_is_refused() -> None:
    with pytest.raises(TypeError, match=r"complex.*does not say what a record holds of it"):
        record_schema.record_schema(Record, with_field(Finding, "phase", complex), Verdict)

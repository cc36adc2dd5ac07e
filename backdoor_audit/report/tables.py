"""Tables of what questions keep in the record beside their findings: one of each question, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_audit.evidence import Record

MOST_ROWS = 500  # of one table; the record holds all


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What one question kept: a row for each entry, a column for each of their keys; None where an entry lacks one.

    ``columns`` are names, each with the class of its cells: those of numbers stand to the right.
    """

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Any]]]
    left_out: int


def tables(record: Record) -> list[Table]:
    """Every section that a question kept under its own name, in the order of the record."""
    return [_table(name, entries) for name, entries in record.sections.items() if entries]


def _table(name: str, entries: Mapping[str, Any]) -> Table:
    kept = {entry: value if isinstance(value, Mapping) else {"value": value} for entry, value in entries.items()}
    names = list(dict.fromkeys(column for value in kept.values() for column in value))
    rows = [(entry, [value.get(column) for column in names]) for entry, value in kept.items()]
    columns = [(column, _kind([value.get(column) for value in kept.values()])) for column in names]
    return Table(title=name, columns=columns, rows=rows[:MOST_ROWS], left_out=len(rows[MOST_ROWS:]))


def _kind(cells: Sequence[Any]) -> str:
    measured = [cell for cell in cells if cell is not None]
    return "number" if all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in measured) else ""

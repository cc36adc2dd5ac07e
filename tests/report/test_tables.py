"""Tables of what questions keep beside their findings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backdoor_audit.report import tables as module
from backdoor_audit.report.tables import tables
from tests.subjects.whole_records import whole_record


def test_a_table_has_a_row_for_each_entry_and_a_column_for_each_key() -> None:
    rows = {"left": {"share": 0.5, "seen": True}, "right": {"share": None, "note": "dark"}}
    (table,) = tables(replace(whole_record(), sections={"sides": rows, "empty": {}}))
    assert table.title == "sides"
    assert table.columns == [("share", "number"), ("seen", ""), ("note", "")]
    assert table.rows == [("left", [0.5, True, None]), ("right", [None, None, "dark"])]
    assert table.left_out == 0


def test_of_many_rows_the_page_leaves_some_out_and_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    (table,) = tables(replace(whole_record(), sections={"sides": {str(number): {"n": number} for number in range(5)}}))
    assert ([name for name, _ in table.rows], table.left_out) == (["0", "1"], 3)


def test_an_entry_without_columns_of_its_own_has_one() -> None:
    (table,) = tables(replace(whole_record(), sections={"sides": {"left": 3}}))
    assert (table.columns, table.rows) == ([("value", "number")], [("left", [3])])

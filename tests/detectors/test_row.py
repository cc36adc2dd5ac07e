"""Rows as they stand in a record: every key for every kind, and back again."""

import json

import pytest

from backdoor_audit.detectors import Row
from tests.subjects.detections import margin_row, size_row

ROWS = {
    "size": size_row(3, size=4.5, size_ratio=0.2, steps=240, shrinkage=0.1, success_opt=1.0, unconverged="moving"),
    "margin": margin_row(None, margin=-2.0, natural_success=0.1, deviation=5.0, landing=2, index=None),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_comes_back_from_a_record(kind):
    stored = json.loads(json.dumps(ROWS[kind].summary()))
    assert stored["kind"] == kind
    assert Row.of(stored) == ROWS[kind]


def test_records_have_the_same_keys_for_every_kind_and_null_for_what_was_not_measured():
    size, margin = (ROWS[kind].summary() for kind in ("size", "margin"))
    assert list(size) == list(margin)
    assert (size["margin"], size["landing"], margin["size"], margin["steps"]) == (None,) * 4
    assert (size["size"], size["unconverged"], margin["margin"], margin["landing"]) == (4.5, "moving", -2.0, 2)


@pytest.mark.parametrize("kind", ROWS)
def test_a_file_from_before_kinds_were_named_is_read(kind):
    stored = ROWS[kind].summary()
    del stored["kind"]
    assert Row.of(stored) == ROWS[kind]


def test_the_numbers_behind_a_finding_are_those_that_there_are():
    assert ROWS["margin"].details() == {
        "success_val": 0.9,
        "p_value": 0.01,
        "image_passes": 1,
        "reached": True,
        "margin": -2.0,
        "natural_success": 0.1,
        "landing": 2,
        "deviation": 5.0,
    }


def test_the_index_that_is_judged_is_the_papers_only_where_there_is_one():
    size, margin = size_row(index=3.0, paper_index=1.5), margin_row(index=3.0)
    assert (size.judged_index("calibrated"), size.judged_index("paper")) == (3.0, 1.5)
    assert (margin.judged_index("calibrated"), margin.judged_index("paper")) == (3.0, 3.0)


def test_a_row_is_told_in_a_few_words():
    assert size_row(index=2.345, size_ratio=0.2).brief == "index 2.35, 0.20 of the median"
    assert size_row(index=None, size_ratio=None).brief == "index 0.00"
    assert margin_row(index=2.345).brief == "index 2.35"

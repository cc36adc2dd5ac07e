"""Items and their node ids: one grammar, made and read in one place."""

from __future__ import annotations

import pytest

from backdoor_audit.item import Item, Row

KNOWN = [
    (Item("precondition", "enough_images"), "audit::test_precondition[enough_images]"),
    (Item("anomaly_index", "neural_cleanse", Row(7)), "audit::test_anomaly_index[neural_cleanse-class_7]"),
    (Item("anomaly_index", "source_scan", Row(0, True)), "audit::test_anomaly_index[source_scan-from_class_0]"),
    (Item("anomaly_index", "relabelling", Row(None)), "audit::test_anomaly_index[relabelling-all_to_all]"),
    (Item("mine", "a-b"), "audit::test_mine[a-b]"),
    (Item("mine", "a-class_x"), "audit::test_mine[a-class_x]"),
]


@pytest.mark.parametrize(("item", "node_id"), KNOWN)
def test_a_node_id_and_json_give_the_item_back(item: Item, node_id: str) -> None:
    assert item.node_id == node_id
    assert Item.parse(node_id) == item
    assert Item.from_json(item.to_json()) == item
    assert Item.within(item.question, item.brackets) == item


@pytest.mark.parametrize(
    "name", ["tests/test_x.py::test_mine[class_1]", "audit", "audit::test_", "", "a::audit::test_x[y]"]
)
def test_a_test_of_a_project_asks_no_question_of_the_audit(name: str) -> None:
    assert Item.parse(name) == Item()


@pytest.mark.parametrize(
    "text", ["class_", "class_-1", "from_", "all", "class_7x", "class_" + "1" * 40, "class_\u0663"]
)
def test_what_is_no_row_is_none(text: str) -> None:
    assert Row.parse(text) is None

"""Identifiers of the field's frameworks."""

from __future__ import annotations

import re

import pytest

from backdoor_audit.questions.frameworks import FRAMEWORKS, Reference, references
from backdoor_audit.questions.suite import shipped_words

FORMS = {
    "MITRE ATLAS": r"AML\.[MT]\d{4}(\.\d{3})?",
    "NIST AI 100-2": r"NISTAML\.\d{2,3}",
    "OWASP Machine Learning Security Top Ten": r"ML\d{2}:2023",
    "EU AI Act": r"Article \d+\(\d\)",
}


@pytest.mark.parametrize("entry", FRAMEWORKS, ids=lambda entry: entry.id)
def test_every_entry_has_the_form_of_its_framework_and_names_edition_and_page(entry: Reference) -> None:
    assert re.fullmatch(FORMS[entry.framework], entry.id)
    assert entry.name
    assert entry.edition
    assert re.fullmatch(r"https://[\w./-]+", entry.url)
    assert entry.label == f"{entry.framework} ({entry.edition}), {entry.id}: {entry.name}"


def test_no_identifier_occurs_twice_and_a_framework_has_one_edition_in_one_block() -> None:
    assert len({entry.id for entry in FRAMEWORKS}) == len(FRAMEWORKS)
    blocks = list(dict.fromkeys((entry.framework, entry.edition) for entry in FRAMEWORKS))
    assert [framework for framework, _ in blocks] == list(FORMS)
    assert sorted(FRAMEWORKS, key=lambda entry: list(FORMS).index(entry.framework)) == list(FRAMEWORKS)


def test_statistics_refer_to_entries_that_exist_and_every_entry_is_used_or_is_about_a_kind_of_attack() -> None:
    used = {id_ for words in shipped_words().values() for ids in words.references.values() for id_ in ids}
    known = {entry.id for entry in FRAMEWORKS}
    assert used <= known
    assert known - used == {"AML.T0018.001", "NISTAML.021"}


def test_references_stand_in_the_order_in_which_they_are_named_and_unknown_ones_are_left_out() -> None:
    assert [entry.id for entry in references(("Article 15(1)", "nothing", "AML.M0008"))] == [
        "Article 15(1)",
        "AML.M0008",
    ]
    assert (
        shipped_words()["property"].references["steered_share"]
        == shipped_words()["anomaly_index"].references["anomaly_index"]
    )

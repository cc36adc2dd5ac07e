"""Identifiers of the field's frameworks."""

from __future__ import annotations

import re

import pytest

from backdoor_audit.report.frameworks import FRAMEWORKS, REFERENCES_OF, Reference, references_of

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
    used = {id_ for ids in REFERENCES_OF.values() for id_ in ids}
    known = {entry.id for entry in FRAMEWORKS}
    assert used <= known
    assert known - used == {"AML.T0018.001", "NISTAML.021"}


def test_a_statistic_has_its_references_in_order_and_a_condition_of_the_audit_has_none() -> None:
    assert [entry.id for entry in references_of("regression")] == ["AML.M0008", "Article 15(1)"]
    assert references_of("steered_share") == references_of("anomaly_index")
    assert references_of("logits") == ()

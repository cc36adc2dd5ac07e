"""One card for every class, the most suspicious first."""

from __future__ import annotations

from typing import Any

import pytest

from backdoor_audit.evidence import STEERED, Record, Verdict
from backdoor_audit.report.html import page
from backdoor_audit.report.picture_files import pictures
from tests.subjects.parsed import Element, Page
from tests.subjects.records import finding
from tests.subjects.whole_records import whole_record


@pytest.fixture(scope="module")
def told() -> Page:
    record = whole_record(5, infected=(1, 3))
    more = [
        finding(audit="audit::test_property[patch]", statistic=STEERED, value=0.9, limit=0.7, target_class=3),
        finding(
            audit="audit::test_anomaly_index[source_scan-from_class_0]",
            value=2.4,
            target_class=3,
            reason="from class 0: a small patch sends 100% away, most to class 3",
        ),
    ]
    return Page(page({"a": whole_record(5, infected=(1, 3), findings=[*record.findings, *more])}))


def cards(page: Page) -> list[Element]:
    return [item for item in page.within(page.by_id("gallery"), "li") if "card" in item.classes]


def test_every_class_has_one_card_the_most_suspicious_first(told: Page) -> None:
    names = [" ".join(card.text.split()[:4]) for card in cards(told)]
    assert names == [f"class {n} (sign {n})" for n in (3, 1, 0, 2, 4)]


def test_a_card_has_the_stamped_counterexample_to_a_property_of_its_class(told: Page) -> None:
    first, second = cards(told)[:2]
    assert "Counterexample to “patch”" in first.text
    assert "assert steered < 0.5" in first.text
    assert "Counterexample" not in second.text
    (place,) = [one for one in told.within(first, "div") if "counterexample" in one.classes]
    assert len(told.within(place, "img")) == 3  # the change, an image before, the same after


def test_a_card_has_what_only_images_of_one_class_do(told: Page) -> None:
    first, second = cards(told)[:2]
    assert "From one class alone" in first.text
    assert "from class 0: a small patch sends 100% away, most to class 3" in first.text
    assert "most to class 3" not in second.text


def only_from_class_0(**rest: Any) -> Record:
    item = "source_scan-from_class_0"
    found = finding(
        Verdict.FAIL,
        audit=f"audit::test_anomaly_index[{item}]",
        value=2.4,
        target_class=3,
        reason="from class 0: a small patch sends 100% away, most to class 3",
    )
    record = whole_record(5, infected=(1,))
    shown = {**record.exhibits["patch_scan-class_1"], "detector": "source_scan", "target_class": 3}
    return whole_record(5, infected=(), findings=[found], exhibits={item: shown}, properties=[], **rest)


def test_what_images_of_one_class_do_is_shown_stamped_on_the_card_and_the_first_screen() -> None:
    told = Page(page({"a": only_from_class_0()}))
    (card,) = cards(told)
    assert card.text.index("From one class alone") < card.text.index("most to class 3")
    pairs = [one for one in told.within(card, "figure") if "pair" in one.classes]
    first = [one for one in told.within(told.by_id("verdict"), "figure") if "pair" in one.classes]
    assert (len(pairs), len(first)) == (4, 3)


def test_files_beside_the_markdown_show_what_images_of_one_class_do() -> None:
    assert set(pictures(only_from_class_0())) == {"clean.png", "stamped.png", "trigger.png"}


def test_a_class_that_passes_has_a_small_card() -> None:
    card = cards(Page(page({"a": whole_record(3, infected=())})))[0]
    assert "wide" not in card.classes
    assert "greatest index 0.50" in card.text


def test_a_suspicion_without_a_picture_has_a_card_all_the_same() -> None:
    found = finding(
        Verdict.INCONCLUSIVE, audit="audit::test_anomaly_index[additive-class_2]", value=2.2, target_class=2
    )
    (card,) = cards(Page(page({"a": whole_record(3, findings=[found], exhibits={}, properties=[])})))
    assert "inconclusive" in card.text
    assert "1.10 times as far as the limit allows" in card.text

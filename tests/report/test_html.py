"""The page: complete, safe, small, and usable by everybody. Read with an HTML parser, never by searching in the text of tags."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from backdoor_audit.errors import DataFormatError
from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.report.html import page, style_sheet
from backdoor_audit.report.svg import Ink
from tests.subjects.parsed import Page
from tests.subjects.records import HOSTILE, finding
from tests.subjects.whole_records import png, whole_record


@pytest.fixture(scope="module")
def record() -> Record:
    return whole_record(4)


@pytest.fixture(scope="module")
def html(record: Record) -> str:
    return page({"audit.json": record})


@pytest.fixture(scope="module")
def parsed(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def several() -> Page:
    clean = whole_record(3, infected=(), baseline=None)
    settings = {**clean.settings, "seed": 4}
    return Page(
        page(
            {
                "clean.json": clean,
                "bad.json": whole_record(3, infected=(1,)),
                "other.json": replace(clean, settings=settings),
            }
        )
    )


def test_the_first_thing_said_is_the_verdict_with_every_finding_that_is_no_pass(parsed: Page, record: Record) -> None:
    verdict = parsed.by_id("verdict")
    before = [element for element in parsed.elements[: parsed.elements.index(verdict)] if element.tag == "section"]
    assert before == []
    assert "FAIL: hidden trigger found for class 3 (sign 3)" in verdict.text
    open_findings = [entry for entry in record.findings if entry.verdict is not Verdict.PASS]
    assert len(open_findings) == 8
    assert [entry.reason for entry in open_findings if entry.reason not in verdict.text] == []


def test_items_with_the_same_reason_are_told_once_with_their_number() -> None:
    same = [finding(Verdict.INCONCLUSIVE, audit=f"audit::test_x[{n}]", reason="too few images") for n in range(30)]
    verdict = Page(page({"a": whole_record(3, infected=(), findings=same)})).by_id("verdict")
    assert verdict.text.count("too few images") == 1
    assert "30 items, first x[0]" in verdict.text


def test_the_first_screen_says_what_to_do_when_it_was_and_what_was_not_looked_for(parsed: Page, record: Record) -> None:
    told = parsed.by_id("verdict").text
    assert "Do not deploy this model." in told
    assert "Not looked for: the training data." in told
    assert "SHA-256 aaaaaaaa…aaaaa" in told
    assert "Audited 2026-11-28 21:32 UTC" in told
    assert "Profile standard, seed 3" in told
    pairs = [one for one in parsed.within(parsed.by_id("verdict"), "figure") if "pair" in one.classes]
    assert len(pairs) == 3


def test_a_pass_of_the_quick_profile_is_never_green() -> None:
    settings = {**whole_record(3).settings, "profile": "quick"}
    verdicts = [
        Page(page({"a": whole_record(3, infected=(), properties=[], baseline=None, **rest)})).by_id("verdict")
        for rest in ({}, {"settings": settings})
    ]
    assert ["pass" in verdict.classes for verdict in verdicts] == [True, False]
    assert "quick look" in verdicts[1].text
    assert "Not looked for: the training data" in verdicts[1].text


def test_the_most_suspicious_class_stands_first() -> None:
    found = Page(page({"a": whole_record(6, infected=(4,))}))
    rows = found.within(found.by_id("index-table"), "tr")
    assert [row.text.split()[0] for row in rows[1:4]] == ["4", "all", "0"]
    cards = [item for item in found.within(found.by_id("gallery"), "li") if "card" in item.classes]
    assert [card.text.split()[1] for card in cards][:3] == ["4", "0", "1"]


def test_every_picture_has_its_size_so_that_links_land_where_they_should(parsed: Page) -> None:
    sizes = [(picture.attributes["width"], picture.attributes["height"]) for picture in parsed.all("img")]
    assert set(sizes) == {("32", "32")}


def test_what_broke_and_what_was_not_run_is_told_with_the_verdict() -> None:
    partial = whole_record(3, infected=(), errors={"audit::test_x[y]": "out of memory"}, not_run=["audit::test_z[1]"])
    verdict = Page(page({"a": partial})).by_id("verdict")
    assert "out of memory" in verdict.text
    assert "1 items were not run, first audit::test_z[1]" in verdict.text


def test_an_accepted_finding_is_told_with_its_acceptance() -> None:
    accepted = {"finding": "audit::test_x[1]", "reason": "known", "owner": "ann", "expires": "2030-01-31"}
    told = whole_record(3, infected=(), findings=[finding(audit="audit::test_x[1]")])
    baseline = {**(told.baseline or {}), "accepted": [accepted]}
    assert (
        "accepted by ann until 2030-01-31" in Page(page({"a": replace(told, baseline=baseline)})).by_id("verdict").text
    )


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("tested", ("Is the smallest trigger for one class far smaller", "no filter fits")),
        ("not-tested", ("the training data", "no filter fits")),
        ("triggers", ("mask", "pattern under the mask", "3 (sign 3) 99%", "6 more searches led to this class")),
        ("triggers", ("Stands out 2.0 times as far as the limit allows (index 4.03, limit 2)",)),
        ("indices", ("4.03 fail", "all to all")),
        ("sizes", ("Size / median", "below 1 in 1,000")),
        ("network", ("features", "linf: separation 0.83", "31% of the map on the trigger, which covers 1.1%")),
        ("repairs", ("nc_pruning", "100.0% → 2.0%", "11 of 64 channels pruned")),
        ("canary", ("a canary was found", "patch of 4 px", "patch_scan", "93.0% → 91.0%", "2.0% → 94.0%")),
        ("kept", ("Brightness of patches", "darkest", "0.25", "[1, 2]", "<script>alert(1)</script>", "true")),
        ("properties", ("patch was looked at", '{"kind": "patch"}', "assert steered < 0.5")),
        ("baseline", ("class 3: index 0.2 before, 4.0 now", "2020-01-31", "expired")),
        ("items", ("audit::test_anomaly_index[stripes-class_2]",)),
        ("reproduce", ("pytest --model=models/m.safetensors --data=images.npz --audit-seed=3", "a" * 64, "69,372")),
        ("frameworks", ("AML.M0008", "evidence towards", "do not establish conformity")),
    ],
)
def test_every_section_says_what_the_record_holds(parsed: Page, section: str, words: tuple[str, ...]) -> None:
    text = parsed.by_id(section).text
    assert [word for word in words if word not in text] == []


def test_the_contents_name_every_section_that_is_there(parsed: Page) -> None:
    (nav,) = parsed.all("nav")
    links = [link.attributes["href"][1:] for link in parsed.within(nav, "a")]
    sections = [element.id for element in parsed.all("section")]
    assert set(sections) == set(links) - {"next"}


def test_a_record_with_nothing_in_it_still_makes_a_page() -> None:
    empty = Record(
        subject={},
        settings={"seed": 0},
        environment={},
        detections=[],
        repairs=[],
        findings=[],
        skipped={},
        errors={"audit::test_x": "the model could not be loaded"},
        not_run=[],
        not_tested=[],
        seconds=0.1,
    )
    parsed = Page(page({"audit.json": empty}))
    assert "the model could not be loaded" in parsed.by_id("verdict").text
    assert "No repair was run." in parsed.by_id("repairs").text
    assert "this page does not show that a known trigger would have been found" in parsed.by_id("canary").text


def test_a_network_without_a_feature_map_says_so() -> None:
    told = whole_record(3, activations={"class_1": {"target_class": 1, "unavailable": "there is no feature map"}})
    assert "there is no feature map" in Page(page({"a": told})).by_id("network").text


@pytest.mark.parametrize(
    "wrong",
    [
        {"detections": [{"detector": "x"}]},
        {
            "exhibits": {
                "x-class_1": {"detector": "x", "target_class": 1, "pictures": {"mask": "no picture"}, "examples": []}
            }
        },
        {"seconds": "long"},
        {"settings": {}},
        {"repairs": [1]},
    ],
)
def test_a_record_with_other_content_is_refused_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataFormatError, match=r"^there/audit.json: not the content of an audit \(.*\); .*accepted$"):
        page({"there/audit.json": whole_record(3, **wrong)})


@pytest.mark.usefixtures("drawn_anew")
def test_the_same_record_gives_the_same_page(record: Record, html: str) -> None:
    assert page({"audit.json": record}) == html


# Nothing gets in, nothing gets out


def test_nothing_is_loaded(parsed: Page) -> None:
    loading = [
        (element.tag, name, value)
        for element in parsed.elements
        for name, value in element.attributes.items()
        if name in ("src", "srcset", "data", "poster", "background") or (name == "href" and element.tag != "a")
    ]
    assert len(loading) > 20
    assert [entry for entry in loading if not entry[2].startswith(("data:", "#"))] == []
    assert "url(" not in style_sheet()
    assert "@import" not in style_sheet()


def test_the_policy_allows_the_pages_own_style_and_script_alone(parsed: Page) -> None:
    (policy,) = [
        element.attributes["content"]
        for element in parsed.all("meta")
        if element.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (element,) = parsed.all(tag)
        digest = base64.b64encode(hashlib.sha256("".join(element.parts).encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_nothing_needs_what_the_policy_forbids(parsed: Page) -> None:
    inline = [
        (element.tag, name)
        for element in parsed.elements
        for name in element.attributes
        if name == "style" or name.startswith("on")
    ]
    assert inline == []


def test_links_that_leave_the_page_tell_nobody_where_from(parsed: Page) -> None:
    leaving = [link for link in parsed.all("a") if not link.attributes["href"].startswith("#")]
    assert leaving
    assert all(link.attributes["href"].startswith("https://") for link in leaving)
    assert all(link.attributes["rel"] == "noreferrer noopener" for link in leaving)


def hostile(value: Any) -> Any:
    """The same value with every string of it turned into mark-up, but for those that the record's own form fixes."""
    if isinstance(value, dict):
        return {key: entry if key in _FIXED else hostile(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [hostile(entry) for entry in value]
    return (
        f"<script>alert(1)</script><img src=x onerror=alert(1)>'\"{{{{ 7*7 }}}} {value}"
        if isinstance(value, str)
        else value
    )


_FIXED = {"verdict", "rows", "pictures", "image", "stamped", "overlay", "picture", "label", "norms", "statistic"}


def test_every_word_of_a_record_is_text(parsed: Page) -> None:
    record = whole_record(4)
    attacked = replace(
        record,
        **{
            name: hostile(getattr(record, name))
            for name in (
                "subject",
                "environment",
                "detections",
                "repairs",
                "canaries",
                "skipped",
                "not_tested",
                "exhibits",
                "activations",
                "properties",
                "baseline",
            )
        },
        settings={**hostile(dict(record.settings)), "limits": record.settings["limits"]},
        findings=[
            replace(entry, **hostile({"reason": entry.reason, "settings": entry.settings})) for entry in record.findings
        ],
        errors={f"audit::test_x[{text}]": text for text in HOSTILE},
        not_run=list(HOSTILE),
    )
    found = Page(page({HOSTILE[0]: attacked}))
    assert len(found.all("script")) == 1
    assert {element.tag for element in found.elements} <= {element.tag for element in parsed.elements} | {"br"}
    names = {name for element in found.elements for name in element.attributes}
    assert [name for name in names if name.startswith("on")] == []
    assert "<script>alert(1)</script>" in found.by_id("indices").text
    assert "{{ 7*7 }}" in found.by_id("indices").text


def test_a_class_with_a_hostile_name_is_called_by_it() -> None:
    found = Page(page({"a": whole_record(3, infected=(1,), names=["cat", "<script>alert(1)</script>", "dog"])}))
    assert "hidden trigger found for class 1 (<script>alert(1)</script>)" in found.by_id("verdict").text
    assert len(found.all("script")) == 1


def test_a_picture_that_is_none_is_refused() -> None:
    exhibit = {"detector": "x", "target_class": 1, "pictures": {"mask": '"><script>'}, "examples": []}
    with pytest.raises(DataFormatError, match="no PNG"):
        page({"a": whole_record(3, exhibits={"x-class_1": exhibit})})


# Everybody can read it


@pytest.mark.parametrize("which", ["parsed", "several"])
def test_headings_are_in_order(which: str, request: pytest.FixtureRequest) -> None:
    levels = [int(element.tag[1]) for element in request.getfixturevalue(which).all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert [(above, below) for above, below in pairwise(levels) if below > above + 1] == []


@pytest.mark.parametrize("which", ["parsed", "several"])
def test_ids_are_unique_and_every_reference_has_its_end(which: str, request: pytest.FixtureRequest) -> None:
    found: Page = request.getfixturevalue(which)
    ids = [element.id for element in found.elements if element.id]
    assert len(ids) == len(set(ids))
    references = [
        value.removeprefix("#")
        for element in found.elements
        for name, value in element.attributes.items()
        if name in ("aria-labelledby", "data-for") or (name == "href" and value.startswith("#"))
    ]
    references += [
        inside
        for element in found.elements
        for value in element.attributes.values()
        for inside in re.findall(r"url\(#([^)]+)\)", value)
    ]
    assert len(references) > 50
    assert set(references) - set(ids) == set()


def test_the_page_has_a_language_a_title_and_a_way_past_the_contents(parsed: Page) -> None:
    assert parsed.all("html")[0].attributes["lang"] == "en"
    assert parsed.all("title")[0].text == "Backdoor audit of m.safetensors"
    first = parsed.all("a")[0]
    assert first.attributes["href"] == "#content"
    assert parsed.by_id("content").tag == "main"


def test_every_picture_has_words(parsed: Page) -> None:
    pictures = parsed.all("img")
    assert len(pictures) > 40
    assert [picture.attributes for picture in pictures if not picture.attributes.get("alt")] == []
    charts = [element for element in parsed.all("svg") if "chart" in element.classes]
    assert len(charts) == 7  # repairs, three norms, one curve, sizes, indices
    assert all(chart.attributes["role"] == "img" and chart.attributes["aria-label"] for chart in charts)


def test_every_table_has_a_caption_and_every_head_a_scope(parsed: Page) -> None:
    tables = parsed.all("table")
    assert all(parsed.within(table, "caption") for table in tables)
    heads = parsed.all("th")
    assert len(heads) > 40
    assert {head.attributes.get("scope") for head in heads} == {"col", "row"}


def test_what_scrolls_can_be_reached_and_has_a_name(parsed: Page) -> None:
    scrolling = [element for element in parsed.elements if "scroll" in element.classes]
    assert scrolling
    assert all(element.attributes["tabindex"] == "0" and element.attributes["aria-label"] for element in scrolling)
    assert all(table.parents[-1].classes != [] for table in parsed.all("table") if "sortable" in table.classes)


def test_controls_that_need_the_script_are_hidden_without_it(parsed: Page) -> None:
    forms = [form for form in parsed.all("form") if "filter" in form.classes]
    assert forms
    assert all("hidden" in form.attributes for form in forms)
    outside = [button for button in parsed.all("button") if not any(outer.tag == "dialog" for outer in button.parents)]
    assert outside == []


def test_the_verdict_is_told_in_words_wherever_colours_tell_it(parsed: Page) -> None:
    cells = [cell for cell in parsed.all("td") if "fail" in cell.classes and cell.parents[-3].tag == "table"]
    matrix = [cell for cell in cells if "matrix" in cell.parents[-3].classes]
    assert len(matrix) == 8
    assert all(cell.text.endswith("fail") for cell in matrix)


SCHEMES = {
    "light": style_sheet().split("@media", 1)[0],
    "dark": style_sheet().split("prefers-color-scheme: dark", 1)[1].split("@media", 1)[0],
    "print": style_sheet().split("@media print", 1)[1],
}


def colours(scheme: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", SCHEMES[scheme]))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_on_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("words", "ground"),
    [
        *((words, ground) for words in ("text", "faint", "link") for ground in ("paper", "panel")),
        *(("text", f"{verdict}-tint") for verdict in ("pass", "fail", "unsure")),
        *(
            (verdict, ground)
            for verdict in ("pass", "fail", "unsure")
            for ground in ("paper", "panel", f"{verdict}-tint")
        ),
    ],
)
def test_words_stand_out_from_their_ground(scheme: str, words: str, ground: str) -> None:
    found = colours(scheme)
    assert contrast(found[words], found[ground]) >= 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ink", [ink for ink in Ink if ink not in (Ink.PAPER, Ink.GRID)])
def test_every_ink_of_the_charts_has_a_colour_that_can_be_seen(scheme: str, ink: Ink) -> None:
    found = colours(scheme)
    assert contrast(found[ink.word], found["paper"]) >= 3


# It stays small


@pytest.mark.parametrize(("classes", "infected", "most"), [(43, (3, 7, 20, 41), 3e6), (10, (3,), 0.8e6)])
def test_a_page_is_small(classes: int, infected: tuple[int, ...], most: float) -> None:
    """Every picture is noise, the worst case; every detector flags every infected class."""
    assert len(page({"audit.json": whole_record(classes, infected=infected)}).encode()) <= most


def test_of_many_large_pictures_those_of_classes_that_pass_are_left_out_first() -> None:
    large = whole_record(100, infected=(2,), shape=(3, 120, 120))
    text = page({"audit.json": large})
    assert len(text.encode()) <= 3e6
    found = Page(text)
    triggers = found.by_id("triggers")
    left_out = [element for element in found.within(triggers, "span") if "missing" in element.classes]
    assert left_out
    assert all(any("gallery" in outer.classes for outer in element.parents) for element in left_out)
    assert f"{len(left_out)} pictures were left out" in triggers.text


def test_of_very_long_runs_only_items_that_are_no_pass_are_listed() -> None:
    many = [finding(Verdict.PASS, audit=f"audit::test_x[{number}]") for number in range(2000)]
    items = Page(page({"a": whole_record(3, infected=(), findings=[*many, finding(audit="audit::test_y")])})).by_id(
        "items"
    )
    assert "audit::test_y" in items.text
    assert "2000 that pass are left out" in items.text


# Several audits


def test_several_audits_begin_with_an_overview_the_worst_first(several: Page) -> None:
    overview = several.by_id("overview")
    rows = [row.text for row in several.within(overview, "tr")][1:]
    assert [row.split()[1] for row in rows] == ["fail", "pass", "pass"]
    assert "1 (sign 1)" in rows[0]
    assert ["bad.json" in rows[0], "clean.json" in rows[1], "other.json" in rows[2]] == [True] * 3
    assert several.all("h1")[0].text == "Backdoor audits of 3 models"


def test_every_audit_has_its_own_section(several: Page) -> None:
    assert "hidden trigger found for class 1" in several.by_id("m1-verdict").text
    assert "no hidden trigger found" in several.by_id("m2-verdict").text
    assert several.by_id("m3-audit").tag == "article"


def test_a_page_about_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        page({})


def test_a_picture_is_shown_as_it_was_recorded(parsed: Page, record: Record) -> None:
    shown = {picture.attributes["src"] for picture in parsed.all("img")}
    assert f"data:image/png;base64,{record.exhibits['neural_cleanse-class_3']['pictures']['mask']}" in shown
    assert f"data:image/png;base64,{png((1, 32, 32), 99)}" not in shown


def test_the_verdict_is_not_made_anew_for_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    verdict = Record.verdict.fget
    assert verdict is not None

    def counted(record: Record) -> Verdict:
        made.append(len(record.findings))
        return verdict(record)

    few, many = whole_record(3), whole_record(12)
    monkeypatch.setattr(Record, "verdict", property(counted))
    for record in (few, many):
        page({"audit.json": record})
    assert 0 < made.count(len(many.findings)) <= made.count(len(few.findings)) + 1

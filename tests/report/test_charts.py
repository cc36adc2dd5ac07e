"""Charts: marks where the numbers say, words of strangers as text only, the same text every time, colours left to the page."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from backdoor_audit.evidence import Verdict
from backdoor_audit.report import charts
from backdoor_audit.report.certainty import CleanModels
from backdoor_audit.report.null_chart import null_chart
from backdoor_audit.report.repair_chart import repair_chart
from backdoor_audit.report.svg import Ink, figure, inline
from tests.subjects.records import HOSTILE

SIZES = [(0, 50.0, True), (1, 5.0, True), (2, 100.0, False)]


def size_chart(names: dict[int, str] | None = None, **given: Any) -> str:
    return charts.size_chart(
        "sizes",
        **{
            "sizes": SIZES,
            "median": 50.0,
            "cut": 9.0,
            "verdicts": {1: Verdict.FAIL},
            "class_names": names or {},
            **given,
        },
    )


def curve() -> list[dict[str, Any]]:
    scores = dict.fromkeys(("clean_accuracy", "attack_success_rate", "robust_accuracy"), 0.9)
    return [{"prune_rate": rate, "scores": scores} for rate in (0.0, 0.1, 0.2)]


def repair(method: str, success: float, accuracy: float) -> dict[str, Any]:
    names = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
    before, after = (dict(zip(names, values, strict=True)) for values in ((0.94, 1.0, 0.0), (accuracy, success, 0.9)))
    return {"method": method, "before": before, "after": after}


def repairs(*outcomes: dict[str, Any]) -> str:
    return repair_chart("repairs", outcomes, success_limit=0.1, drop_limit=0.03)


CLEAN = CleanModels(0.6, 0.2, 18)
GROUPS = {"clean": [1.0, 2.0, 3.0], "synthetic": [2.0, 9.0, 9.0]}
MARKS = [("neural_cleanse", [("class 0", 0.5, Verdict.PASS), ("class 1 (dog)", 4.0, Verdict.FAIL)])]
DRAWN = {
    "sizes": size_chart(),
    "indices": charts.index_chart("indices", MARKS, limit=2.0),
    "norms": charts.norm_chart("norms", "l1", GROUPS),
    "curve": charts.curve_chart("curve", curve(), success_limit=0.1, chosen=0.1),
    "null": null_chart("null", CLEAN, detector="patch_scan", limit=2.0, value=4.6, called="class 7"),
    "repairs": repairs(repair("pruning", 0.04, 0.88), repair("unlearning", 0.01, 0.93)),
}


def titled(chart: str, title: str) -> ElementTree.Element:
    """The artist that shows this when the pointer rests on it."""
    return next(
        element
        for element in ElementTree.fromstring(chart).iter()
        if any(child.tag == "title" and child.text == title for child in element)
    )


def box(element: ElementTree.Element) -> tuple[float, float]:
    """Left and right end of a bar."""
    (path,) = element.iter("path")
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
    return min(numbers[::2]), max(numbers[::2])


def test_bars_are_as_long_as_their_classes_say() -> None:
    spans = [box(titled(size_chart(), title)) for title in ("class 0 : 50.0 px", "class 1 : 5.0 px")]
    lengths = [right - left for left, right in spans]
    assert lengths[0] == pytest.approx(10 * lengths[1], rel=0.02)
    assert spans[0][0] == spans[1][0]


def test_a_bar_tells_its_verdict_and_whether_the_search_reached_its_threshold() -> None:
    drawn = {
        number: next(titled(size_chart(), title).iter("path"))
        for number, title in enumerate(
            ("class 0 : 50.0 px", "class 1 : 5.0 px", "class 2 : 100.0 px, threshold not reached")
        )
    }
    assert "fill-plain" in drawn[0].attrib["class"]
    assert "fill-fail" in drawn[1].attrib["class"]
    assert drawn[2].attrib["fill"] == "none"


def test_the_smallest_trigger_is_on_top() -> None:
    places = [
        next(titled(size_chart(), title).iter("path")).attrib["d"]
        for title in ("class 1 : 5.0 px", "class 0 : 50.0 px")
    ]
    top = [float(re.findall(r"-?\d+\.?\d*", path)[1]) for path in places]
    assert top[0] < top[1]


def test_the_words_for_screen_readers_name_what_is_no_pass() -> None:
    root = ElementTree.fromstring(size_chart({1: "dog"}))
    assert root.attrib["role"] == "img"
    assert "flagged below 9.0. Not a pass: class 1 dog with 5.0 pixels" in root.attrib["aria-label"]


def test_every_class_has_its_mark_under_every_detector() -> None:
    chart = DRAWN["indices"]
    assert "fill-plain" in str(ElementTree.tostring(titled(chart, "class 0: 0.50")))
    assert "fill-fail" in str(ElementTree.tostring(titled(chart, "class 1 (dog): 4.00")))


def test_of_many_classes_only_those_that_are_no_pass_have_a_mark() -> None:
    marks = [(f"class {number}", number / 1000, Verdict.PASS) for number in range(500)]
    chart = charts.index_chart("indices", [("additive", [*marks, ("class 500", 3.0, Verdict.FAIL)])], limit=2.0)
    titles = [element.text for element in ElementTree.fromstring(chart).iter("title")]
    assert titles == ["class 500: 3.00"]


def test_channels_are_counted_in_the_bins_that_hold_their_norm() -> None:
    chart = ElementTree.fromstring(DRAWN["norms"])
    outlines = [path.attrib["d"] for path in chart.iter("path") if "stroke-second" in path.attrib.get("class", "")]
    heights = [float(number) for number in re.findall(r"-?\d+\.?\d*", max(outlines, key=len))[1::2]]
    ground, one, two = sorted(set(heights), reverse=True)
    assert ground - two == pytest.approx(2 * (ground - one), abs=0.2)


def test_groups_of_equal_norms_can_be_drawn() -> None:
    assert charts.norm_chart("norms", "l1", {"clean": [0.0, 0.0], "synthetic": [0.0, 0.0]}).startswith("<svg")


def test_a_curve_says_where_it_stopped_only_if_it_is_known() -> None:
    assert "stopped at 10%" in DRAWN["curve"]
    assert "stopped" not in charts.curve_chart("curve", curve(), success_limit=0.1, chosen=None)


def test_a_model_far_beyond_the_limit_stands_at_the_edge_with_its_number() -> None:
    chart = null_chart("null", CLEAN, detector="patch_scan", limit=2.0, value=250.0, called="class 7")
    assert "this model: \u2192 250.00" in chart
    assert "this model: 4.60" in DRAWN["null"]


def test_a_repair_says_what_it_leaves_and_what_it_keeps() -> None:
    texts = [element.text for element in ElementTree.fromstring(DRAWN["repairs"]).iter("text")]
    assert "pruning 4.0%, 88.0%" in texts
    assert "unlearning 1.0%, 93.0%" in texts
    assert titled(DRAWN["repairs"], "unlearning: success 1.0%, clean accuracy 93.0%") is not None


def test_repairs_that_could_not_be_tried_make_no_chart() -> None:
    assert repairs({**repair("clp", 0.0, 0.9), "after": None}) == ""


def test_the_name_of_a_repair_is_text() -> None:
    drawn = repairs(*(repair(name, 0.04, 0.88) for name in HOSTILE))
    texts = {element.text for element in ElementTree.fromstring(drawn).iter("text")}
    assert {f"{name} 4.0%, 88.0%" for name in HOSTILE} <= texts


def test_words_of_strangers_are_text() -> None:
    sizes = [(label, 5.0, True) for label in range(len(HOSTILE))]
    root = ElementTree.fromstring(size_chart(dict(enumerate(HOSTILE)), sizes=sizes))
    assert {element.tag for element in root.iter()} <= {
        "svg",
        "g",
        "path",
        "defs",
        "clipPath",
        "rect",
        "use",
        "text",
        "title",
    }
    titles = {element.text for element in root.iter("title")}
    assert {f"class {label} {name}: 5.0 px" for label, name in enumerate(HOSTILE)} <= titles


@pytest.mark.parametrize("name", DRAWN)
def test_colours_are_left_to_the_page_and_styles_are_attributes(name: str) -> None:
    root = ElementTree.fromstring(DRAWN[name])
    values = [(key, value) for element in root.iter() for key, value in element.attrib.items()]
    assert [entry for entry in values if entry[0] == "style"] == []
    assert [entry for entry in values if entry[0] in ("fill", "stroke") and entry[1].startswith("#")] == []
    assert "style" not in {element.tag for element in root.iter()}
    words = {ink.word for ink in Ink}
    classes = {word for key, value in values if key == "class" for word in value.split()} - {"chart"}
    assert {word.partition("-")[2] for word in classes} <= words


@pytest.mark.parametrize("name", DRAWN)
def test_ids_are_those_that_something_refers_to(name: str) -> None:
    root = ElementTree.fromstring(DRAWN[name])
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    text = DRAWN[name]
    assert ids
    assert all(identifier.startswith(f"{name}-") for identifier in ids)
    assert all(f"#{identifier}" in text for identifier in ids)


def test_the_same_numbers_give_the_same_chart() -> None:
    assert size_chart() == DRAWN["sizes"]


def test_a_users_own_matplotlib_settings_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "text.color": "green"}):
        assert size_chart() == DRAWN["sizes"]
        assert matplotlib.rcParams["font.size"] == 40


def test_text_stays_text() -> None:
    with figure(100, 50) as drawn:
        drawn.text(0.5, 0.5, "0", gid="place")
        chart = inline(drawn, "x", "a word", texts={"place": "$x$ 漢字 <b>"})
    assert [element.text for element in ElementTree.fromstring(chart).iter("text")] == ["$x$ 漢字 <b>"]

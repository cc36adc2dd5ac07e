"""Pictures: valid files, the right bars, nothing of a stranger's text unescaped."""

from __future__ import annotations

import base64
import io
from typing import Any
from xml.etree import ElementTree

import torch
from PIL import Image

from backdoor_audit.report.pictures import size_chart, strip

SVG = "{http://www.w3.org/2000/svg}"


def summary(sizes: list[float], *, reached: bool = True) -> dict[str, Any]:
    classes = [{"target_class": target, "size": size, "reached": reached} for target, size in enumerate(sizes)]
    return {"classes": classes, "median_size": 50.0, "cut_size": 20.0}


def bars(chart: str) -> list[ElementTree.Element]:
    return [bar for bar in ElementTree.fromstring(chart).iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]


def test_a_strip_is_a_png_with_its_tiles_side_by_side() -> None:
    tiles = [torch.zeros(1, 8, 8), torch.ones(3, 8, 8)]
    picture = Image.open(io.BytesIO(base64.b64decode(strip(tiles))))
    assert picture.size == (84 + 6 + 84, 84)
    assert picture.getpixel((10, 10)) == (0, 0, 0)
    assert picture.getpixel((100, 10)) == (255, 255, 255)


def test_the_chart_has_a_bar_per_class_in_proportion_and_marks_the_flagged_one() -> None:
    drawn = bars(size_chart(summary([50.0, 5.0, 100.0]), 0.25, ["a", "b", "c"], 1))
    heights = [float(bar.get("height", 0)) for bar in drawn]
    assert heights[0] == 10 * heights[1] or abs(heights[0] - 10 * heights[1]) < 1
    assert abs(heights[2] - 2 * heights[0]) < 1
    assert drawn[1].get("fill") == "#c0392b"
    assert drawn[0].get("fill") != "#c0392b"


def test_a_class_that_was_not_reached_is_hollow() -> None:
    assert {bar.get("fill") for bar in bars(size_chart(summary([50.0, 60.0], reached=False), 0.25, [], None))} == {
        "none"
    }


def test_class_names_are_escaped() -> None:
    chart = size_chart(summary([50.0]), 0.25, ["<script>"], None)
    assert "<script>" not in chart
    assert bars(chart)[0].find(f"{SVG}title").text == "class 0 <script>: 50.0 px"  # type: ignore[union-attr]


def test_no_chart_without_sizes() -> None:
    assert size_chart({"classes": [], "median_size": None, "cut_size": None}, 0.25, [], None) == ""

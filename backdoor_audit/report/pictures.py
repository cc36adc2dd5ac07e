"""Small pictures for eyes: PNG strips of triggers and an SVG chart of sizes. Nothing reads them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image
from torch import Tensor

from backdoor_audit.png import picture, png

_TILE = 84  # px, the height of one tile in a strip
_GAP = 6
_BLACK, _RED, _ORANGE, _BLUE = "#222", "#c0392b", "#e08e0b", "#5b7ea4"


def strip(tiles: Sequence[Tensor]) -> str:
    """Images (c, h, w) in [0, 1] side by side, as PNG in base64 text."""
    drawn = [_tile(tile) for tile in tiles]
    width = sum(tile.width for tile in drawn) + _GAP * (len(drawn) - 1)
    canvas = Image.new("RGB", (width, max(tile.height for tile in drawn)), "white")
    left = 0
    for tile in drawn:
        canvas.paste(tile, (left, 0))
        left += tile.width + _GAP
    return png(canvas)


def _tile(image: Tensor) -> Image.Image:
    drawn = picture(image)
    scale = _TILE / drawn.height
    smooth = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return drawn.resize((max(1, round(drawn.width * scale)), _TILE), smooth)


@dataclass(frozen=True)
class _Bar:
    """One class in a chart: its value, how to call it in full and under the axis, and how it is drawn."""

    value: float
    title: str
    label: str
    colour: str
    filled: bool = True


def size_chart(detection: Mapping[str, Any], limit_ratio: float, names: Sequence[str], target_class: int | None) -> str:
    """Trigger size of every class as an SVG bar chart, with the median and the size below which a class is flagged.

    ``detection`` is a detection's summary. Bars of classes whose search did not reach the threshold are hollow.
    """
    scores = detection["classes"]
    if not scores or not detection["median_size"]:
        return ""
    median, cut = detection["median_size"], min(detection["cut_size"], limit_ratio * detection["median_size"])
    bars = [
        _Bar(
            score["size"],
            f"{_class_title(score['target_class'], names)}: {score['size']:.1f} px",
            str(score["target_class"]),
            _RED if score["size"] < cut else _ORANGE if score["target_class"] == target_class else _BLUE,
            filled=score["reached"],
        )
        for score in scores
    ]
    lines = [(f"median {median:.0f} px", median, _BLACK), (f"flagged below {cut:.0f} px", cut, _RED)]
    return _bars(bars, lines, " px", "trigger size per class", "class (trigger size, L1 of the mask)")


def index_chart(detection: Mapping[str, Any], limit: float, names: Sequence[str], target_class: int | None) -> str:
    """Anomaly index of every class as an SVG bar chart with the limit; classes easier for the twins have none to show."""
    scores = [score for score in detection["classes"] if score["index"] is not None]
    if not scores:
        return ""
    bars = [
        _Bar(
            max(0.0, score["index"]),
            f"{_class_title(score['target_class'], names)}: {score['index']:.2f}",
            "all" if score["target_class"] is None else str(score["target_class"]),
            _RED if score["index"] > limit else _ORANGE if score["target_class"] == target_class else _BLUE,
        )
        for score in scores
    ]
    return _bars(
        bars, [(f"flagged above {limit:g}", limit, _RED)], "", "anomaly index per class", "class (anomaly index)"
    )


def _class_title(target: int | None, names: Sequence[str]) -> str:
    if target is None:
        return "all to all"
    return f"class {target} {names[target]}" if target < len(names) else f"class {target}"


def _bars(bars: Sequence[_Bar], lines: Sequence[tuple[str, float, str]], unit: str, title: str, caption: str) -> str:
    """Bars from 0 with dashed lines across; every word is escaped."""
    top = max(*(bar.value for bar in bars), *(value for _, value, _ in lines)) * 1.08 or 1.0
    left, height, wide = 44, 150, max(6, min(28, 640 // len(bars)))
    width = left + wide * len(bars) + 150

    def y(value: float) -> float:
        return float(8 + height * (1 - value / top))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 40}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height + 40}" fill="white"/>',
    ]
    every = -(-len(bars) // 24)
    for position, bar in enumerate(bars):
        parts.append(
            f'<rect x="{left + wide * position + 1}" y="{y(bar.value):.1f}" width="{wide - 2}" '
            f'height="{height + 8 - y(bar.value):.1f}" fill="{bar.colour if bar.filled else "none"}" stroke="{bar.colour}">'
            f"<title>{escape(bar.title)}</title></rect>"
        )
        if position % every == 0:
            middle = left + wide * (position + 0.5)
            parts.append(
                f'<text x="{middle:.1f}" y="{height + 20}" text-anchor="middle" fill="{_BLACK}">{escape(bar.label)}</text>'
            )
    for label, value, colour in lines:
        parts.append(
            f'<line x1="{left}" x2="{width - 146}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{colour}" '
            f'stroke-dasharray="4 3"/><text x="{width - 142}" y="{y(value) + 3:.1f}" fill="{colour}">{label}</text>'
        )
    number = f"{top:.0f}" if top >= 10 else f"{top:.1f}"
    parts.append(f'<text x="4" y="{y(top) + 8:.1f}" fill="{_BLACK}">{number}{unit}</text>')
    parts.append(f'<text x="4" y="{height + 8}" fill="{_BLACK}">0</text>')
    parts.append(f'<text x="{left}" y="{height + 36}" fill="{_BLACK}">{escape(caption)}</text></svg>')
    return "".join(parts)

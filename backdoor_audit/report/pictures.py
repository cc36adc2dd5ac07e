"""Small pictures for eyes: PNG strips of triggers and an SVG chart of sizes. Nothing reads them back."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from PIL import Image
from torch import Tensor

_TILE = 84  # px, the height of one tile in a strip
_GAP = 6


def strip(tiles: Sequence[Tensor]) -> str:
    """Images (c, h, w) in [0, 1] side by side, as PNG in base64 text."""
    drawn = [_tile(tile) for tile in tiles]
    width = sum(tile.width for tile in drawn) + _GAP * (len(drawn) - 1)
    canvas = Image.new("RGB", (width, max(tile.height for tile in drawn)), "white")
    left = 0
    for tile in drawn:
        canvas.paste(tile, (left, 0))
        left += tile.width + _GAP
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _tile(image: Tensor) -> Image.Image:
    values = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    values = values.expand(3, -1, -1) if values.shape[0] == 1 else values
    picture = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
    scale = _TILE / picture.height
    smooth = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return picture.resize((max(1, round(picture.width * scale)), _TILE), smooth)


def size_chart(detection: Mapping[str, Any], limit_ratio: float, names: Sequence[str], target_class: int | None) -> str:
    """Trigger size of every class as an SVG bar chart, with the median and the size below which a class is flagged.

    ``detection`` is a detection's summary. Bars of classes whose search did not reach the threshold are hollow.
    """
    scores = detection["classes"]
    if not scores or not detection["median_size"]:
        return ""
    median, cut = detection["median_size"], min(detection["cut_size"], limit_ratio * detection["median_size"])
    top = max(median, *(score["size"] for score in scores)) * 1.08
    left, height, bar = 44, 150, max(6, min(28, 640 // len(scores)))
    width = left + bar * len(scores) + 150

    def y(size: float) -> float:
        return float(8 + height * (1 - size / top))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 40}" role="img" '
        f'aria-label="trigger size per class" font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height + 40}" fill="white"/>',
    ]
    every = -(-len(scores) // 24)
    for position, score in enumerate(scores):
        target, size = score["target_class"], score["size"]
        name = f"{target} {names[target]}" if target < len(names) else str(target)
        colour = "#c0392b" if size < cut else "#e08e0b" if target == target_class else "#5b7ea4"
        fill = colour if score["reached"] else "none"
        parts.append(
            f'<rect x="{left + bar * position + 1}" y="{y(size):.1f}" width="{bar - 2}" '
            f'height="{height + 8 - y(size):.1f}" fill="{fill}" stroke="{colour}">'
            f"<title>class {escape(name)}: {size:.1f} px</title></rect>"
        )
        if position % every == 0:
            middle = left + bar * (position + 0.5)
            parts.append(f'<text x="{middle:.1f}" y="{height + 20}" text-anchor="middle" fill="#222">{target}</text>')
    for label, size, colour in (
        (f"median {median:.0f} px", median, "#222"),
        (f"flagged below {cut:.0f} px", cut, "#c0392b"),
    ):
        parts.append(
            f'<line x1="{left}" x2="{width - 146}" y1="{y(size):.1f}" y2="{y(size):.1f}" stroke="{colour}" '
            f'stroke-dasharray="4 3"/><text x="{width - 142}" y="{y(size) + 3:.1f}" fill="{colour}">{label}</text>'
        )
    parts.append(f'<text x="4" y="{y(top) + 8:.1f}" fill="#222">{top:.0f} px</text>')
    parts.append(f'<text x="4" y="{height + 8}" fill="#222">0</text>')
    parts.append(f'<text x="{left}" y="{height + 36}" fill="#222">class (trigger size, L1 of the mask)</text></svg>')
    return "".join(parts)

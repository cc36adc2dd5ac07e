"""What the header of a safetensors file says of the images that its network takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from backdoor_audit.errors import ModelFormatError

_LARGEST_SIDE = 4096
_MOST_CHANNELS = 64
LARGEST_NUMBER = 2.0
"""Of a mean or a standard deviation for pixels in [0, 1]; those for pixels in 0 to 255 are far above it."""

_BRACKETS = {("[", "]"), ("(", ")")}  # of the lists of JSON and of Python


def header_shape(header: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Channels, height and width, None if it does not say. Raises `ModelFormatError` for what is no shape."""
    text = header.get("image_shape")
    if text is None:
        return None
    inside = text[1:-1] if (text[:1], text[-1:]) in _BRACKETS else text
    parts = re.fullmatch(r"([0-9]{1,4})(?:x|, ?)([0-9]{1,4})(?:x|, ?)([0-9]{1,4})", inside)
    if parts is not None:
        channels, height, width = (int(part) for part in parts.groups())
        if 1 <= channels <= _MOST_CHANNELS and 1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE:
            return channels, height, width
    raise ModelFormatError(
        f"image_shape {text[:40]!r} in the header; accepted: CHANNELSxHEIGHTxWIDTH such as 3x32x32, with at most "
        f"{_MOST_CHANNELS} channels and {_LARGEST_SIDE} px; write the file anew with another header"
    )


def header_normalization(header: Mapping[str, str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std, empty if it does not say. Raises `ModelFormatError` for what is no normalisation."""
    mean, std = _header_numbers(header, "mean"), _header_numbers(header, "std")
    if len(mean) != len(std) or any(value <= 0 for value in std):
        raise ModelFormatError(
            f"mean {mean} and std {std} in the header; accepted: as many of each, std above 0; or give --mean, --std"
        )
    if max(map(abs, (*mean, *std)), default=0.0) > LARGEST_NUMBER:
        raise ModelFormatError(
            f"mean {_shown(mean)} and std {_shown(std)} in the header are those of pixels in 0 to 255, which lie in [0, 1] here; "
            f"give --mean={_shown(value / 255 for value in mean)} --std={_shown(value / 255 for value in std)}"
        )
    return mean, std


def _shown(numbers: Iterable[float]) -> str:
    return ",".join(f"{number:.4g}" for number in numbers)


def _header_numbers(header: Mapping[str, str], key: str) -> tuple[float, ...]:
    text = header.get(key, "").strip()
    if (text[:1], text[-1:]) in _BRACKETS:
        text = text[1:-1]
    try:
        numbers = tuple(float(part) for part in text.removesuffix(",").split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    if len(numbers) > _MOST_CHANNELS or not all(math.isfinite(number) for number in numbers):
        raise ModelFormatError(
            f"{key} {header[key][:40]!r} in the header; accepted: finite numbers between commas, as in 0.5,0.5,0.5 or "
            "[0.5, 0.5, 0.5]; or give --mean, --std"
        )
    return numbers

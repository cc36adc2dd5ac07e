"""The pictures of a page as data URLs, as many as a page that opens may hold; the important ones are put in first."""

from __future__ import annotations

import base64
import binascii
import io
import struct
from dataclasses import dataclass

from PIL import Image

BUDGET = 2_200_000  # characters; a page of 43 classes with charts and tables stays below 3 MB
_LARGE = 64  # pixels; larger pictures are made smaller and lose their exact values
_REDUCED = 160
_QUALITY = 85
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to show: ``source`` is empty where the page had no room for it.

    ``enlarged`` says that it is small enough for its single pixels to be seen. Width and height are in pixels, so that a
    browser knows the picture's place before it has read it; 0 where there is none.
    """

    source: str
    alt: str
    title: str = ""
    enlarged: bool = True
    width: int = 0
    height: int = 0


class Album:
    """Turns the record's PNG texts into pictures until ``budget`` characters are used; counts what was left out."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.room = budget
        self.left_out = 0

    def picture(self, png: str, alt: str, title: str = "") -> Picture:
        """The picture, or one without a source if there is no room left. Raises `ValueError` for text that is no PNG."""
        try:
            content = base64.b64decode(png, validate=True)
        except binascii.Error:
            content = b""
        if not content.startswith(_SIGNATURE) or len(content) < 24:
            raise ValueError(f"{alt}: a picture that is no PNG in base64")
        width, height = struct.unpack(">II", content[16:24])
        kind = "png"
        if max(width, height) > _LARGE:
            png, kind = _reduced(content), "jpeg"
        if len(png) > self.room:
            self.left_out += 1
            return Picture("", alt, title)
        self.room -= len(png)
        source = f"data:image/{kind};base64,{png}"
        return Picture(source, alt, title, enlarged=kind == "png", width=width, height=height)


def _reduced(content: bytes) -> str:
    """A smaller JPEG of a large picture, in base64. Raises `ValueError` if it cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.thumbnail((_REDUCED, _REDUCED))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, format="JPEG", quality=_QUALITY)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture that cannot be read ({error})") from None
    return base64.b64encode(buffer.getvalue()).decode("ascii")

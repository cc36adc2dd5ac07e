"""Pictures of a page: exact while they are small, made smaller when large, left out where there is no room."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from backdoor_audit.report.picture_budget import Album
from tests.subjects.whole_records import png


def shown(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_a_small_picture_is_kept_as_it_is() -> None:
    recorded = png((3, 64, 64), 1)
    picture = Album().picture(recorded, "a pattern", "pattern")
    assert picture.source == f"data:image/png;base64,{recorded}"
    assert (picture.alt, picture.title, picture.enlarged) == ("a pattern", "pattern", True)


@pytest.mark.parametrize(("shape", "size"), [((3, 224, 448), (160, 80)), ((1, 100, 100), (100, 100))])
def test_a_large_picture_is_made_smaller(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    recorded = png(shape, 1)
    picture = Album().picture(recorded, "a pattern")
    assert shown(picture.source).size == size
    assert len(picture.source) < len(recorded)
    assert not picture.enlarged


def test_pictures_for_which_there_is_no_room_are_counted() -> None:
    recorded = png((3, 16, 16), 1)
    album = Album(budget=2 * len(recorded))
    assert [bool(album.picture(recorded, "x").source) for _ in range(4)] == [True, True, False, False]
    assert album.left_out == 2


@pytest.mark.parametrize(
    "text",
    ["", "!", base64.b64encode(b"<svg onload=alert(1)>").decode(), base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()],
)
def test_what_is_no_png_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the mask: a picture that is no PNG"):
        Album().picture(text, "the mask")


def test_a_large_picture_that_cannot_be_read_is_refused() -> None:
    content = bytearray(base64.b64decode(png((3, 200, 200), 1)))
    broken = base64.b64encode(content[:200]).decode()
    with pytest.raises(ValueError, match="cannot be read"):
        Album().picture(broken, "the mask")

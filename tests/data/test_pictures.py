import io
import os
import struct
import zlib

import pytest
import torch
from PIL import Image

from backdoor_audit import bounds
from backdoor_audit.data import load_clean_set
from tests.subjects.clean_images import image_file, message_of


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def one_picture(folder, content, name="x.png"):
    (folder / "a").mkdir(parents=True, exist_ok=True)
    (folder / "a" / name).write_bytes(content)
    return folder


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


RED = Image.new("RGB", (8, 8), (255, 0, 0))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n"
NO_PICTURE = "1 unreadable images: a/x.png (no PNG, JPEG, BMP, GIF, WebP, TIFF or PPM picture)"


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "MPO", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_the_content_decides_what_a_picture_is(form, name, tmp_path):
    clean_set = load_clean_set(one_picture(tmp_path, encoded(RED, form), name))
    assert clean_set.images[0, :, 4, 4].tolist() == pytest.approx([1, 0, 0], abs=0.02)


@pytest.mark.parametrize("binary", [b"", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + b"\0" * 18])
def test_postscript_behind_the_name_of_a_picture_starts_no_program(binary, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "images"
    folder.mkdir()
    assert message_of(one_picture(folder, binary + EPS)).startswith(NO_PICTURE)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("form", ["PCX", "TGA", "ICO", "JPEG2000", "SGI"])
def test_formats_that_are_not_on_the_list_are_refused(form, tmp_path):
    assert message_of(one_picture(tmp_path, encoded(RED, form))).startswith(NO_PICTURE)


@pytest.mark.parametrize(("form", "name"), [("GIF", "x.gif"), ("WEBP", "x.webp"), ("TIFF", "x.tif"), ("PNG", "x.png")])
def test_of_many_frames_the_first_counts(form, name, tmp_path):
    others = [Image.new("RGB", (8, 8), (0, 0, blue)) for blue in range(200)]
    content = encoded(RED, form, save_all=True, append_images=others)
    clean_set = load_clean_set(one_picture(tmp_path, content, name))
    assert clean_set.images[:, :, 4, 4].tolist() == [pytest.approx([1, 0, 0], abs=0.02)]


def test_a_picture_that_is_too_large_to_decode_is_refused_by_its_header(tmp_path):
    image_file(tmp_path / "a" / "0.png", 0, size=(6000, 6000), mode="1")
    with bounds.allowing(bounds.Bounds(memory=10**9)):
        text = message_of(tmp_path, resize=8)
    assert text.startswith(
        "1 unreadable images: a/0.png (decoding 6000x6000 px would take 1008 MB, at most 500 MB are allowed; raise it by "
        "--audit-memory=SIZE"
    )


def test_large_pictures_are_resized_one_by_one(tmp_path):
    for index in range(4):
        image_file(tmp_path / "a" / f"{index}.png", 255, size=(2000, 2000), mode="L")
    with bounds.allowing(
        bounds.Bounds(memory=230_000_000)
    ):  # all of them as floats take 64 MB, one as it is decoded 112
        assert load_clean_set(tmp_path, resize=4).images.unique().tolist() == [1]
    with bounds.allowing(bounds.Bounds(memory=120_000_000)):
        assert "decoding 2000x2000 px would take 112 MB" in message_of(tmp_path, resize=4)


def test_images_that_are_too_large_together_are_refused_at_the_first(tmp_path):
    for index in range(20):
        image_file(tmp_path / "a" / f"{index}.png", 255, size=(100, 100), mode="L")
    (tmp_path / "a" / "9.png").write_bytes(b"junk")
    with bounds.allowing(bounds.Bounds(memory=1_600_000)):
        text = message_of(tmp_path)
    assert text.startswith(
        "20 images of 1x100x100 floats would take 1 MB, at most 1 MB are allowed; take fewer images by"
    )


def test_a_tall_picture_is_not_widened_before_it_is_shortened(tmp_path, monkeypatch):
    shapes = []
    interpolate = torch.nn.functional.interpolate

    def watched(images, size, **options):
        shapes.append((tuple(images.shape[2:]), tuple(size)))
        return interpolate(images, size=size, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", watched)
    image_file(tmp_path / "a" / "0.png", 255, size=(2, 3000), mode="L")
    assert load_clean_set(tmp_path, resize=(3, 300)).images.unique().tolist() == pytest.approx([1])
    assert shapes == [((3000, 2), (3, 2)), ((3, 2), (3, 300))]


def test_a_file_that_is_large_for_a_picture_is_not_read(tmp_path):
    one_picture(tmp_path, encoded(RED, "BMP") + b"\0" * 100_000)
    with bounds.allowing(bounds.Bounds(memory=6_400_000)):
        assert "a file above 0 MB, the most for a single picture; raise it by --audit-memory" in message_of(tmp_path)
    with (tmp_path / "a" / "x.png").open("r+b") as file:
        file.truncate(2**40)
    assert "a file above 67 MB" in message_of(tmp_path)


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path):
    content = encoded(RED, "JPEG", progressive=True)
    at = content.rfind(b"\xff\xda")
    scan = content[at : at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")]
    assert "a JPEG of more than 100 scans" in message_of(
        one_picture(tmp_path, content[:-2] + scan * 200 + content[-2:])
    )


def exif(size):
    block = b"Exif\0\0II*\0\x08\0\0\0" + b"\0" * size
    return b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_its_exif_turns_is_read_as_it_lies_and_told(form, tmp_path):
    turned = Image.Exif()
    for number, turn in enumerate((6, 6, 1)):
        turned[0x112] = turn
        one_picture(tmp_path, encoded(Image.new("RGB", (6, 4)), form, exif=turned), name=f"{number}.png")
    clean_set = load_clean_set(tmp_path)
    assert clean_set.image_shape == (3, 4, 6)
    assert clean_set.notes == (
        "2 pictures that their EXIF turns: read as they lie, as torchvision's ImageFolder reads them",
    )


@pytest.mark.parametrize(("blocks", "refused"), [(1, False), (2, False), (3, True), (80, True)])
def test_a_jpeg_of_several_blocks_of_exif_is_refused(blocks, refused, tmp_path):
    """Before version 13 of pillow a file of 240 kB took 5 GB: it joins them, and each entry may be a copy of all."""
    content = encoded(RED, "JPEG")
    folder = one_picture(tmp_path, content[:2] + exif(10) * blocks + content[2:])
    if refused:
        assert "a JPEG of more than 2 blocks of EXIF" in message_of(folder)
    else:
        assert len(load_clean_set(folder)) == 1


def test_previews_of_a_phone_have_exif_of_their_own_and_junk_hides_no_block(tmp_path):
    content = encoded(RED, "JPEG")
    picture = content[:2] + exif(10) + content[2:]
    assert len(load_clean_set(one_picture(tmp_path / "phone", picture * 4))) == 1
    hidden = content[:2] + b"".join(exif(10) + b"\0\xff\0\xff" for _ in range(3)) + content[2:]
    assert "a JPEG of more than 2 blocks of EXIF" in message_of(one_picture(tmp_path / "junk", hidden))


def test_a_bmp_that_skips_more_rows_than_it_has_is_refused(tmp_path):
    """Before version 13 of pillow a file of 1 kB took 2 GB for a picture of one row."""
    width, rows = 4_000_000, b"\0\2\xff\xff\xff\xff"
    head = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, len(rows), 0, 0, 256, 256)
    file = b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + head + bytes(1024) + rows
    with bounds.allowing(bounds.Bounds(memory=2**29)):
        assert "decoding 4000000x1 px would take 2152 MB" in message_of(one_picture(tmp_path, file, "x.bmp"))


def tiff(entries, content, at):
    """A grey TIFF of 8 px with numbers in these entries (or several, by how many and where), and ``content`` at a place."""
    known = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, **entries}
    tags = [
        struct.pack("<HHII", name, 4, *(value if isinstance(value, tuple) else (1, value)))
        for name, value in sorted(known.items())
    ]
    start = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    return start.ljust(at, b"\0") + content


def test_a_picture_whose_parts_are_read_again_and_again_is_refused(tmp_path):
    """Here 400 strips of one row each; before version 13 of pillow the entries of a TIFF could each be all of the file."""
    strips = struct.pack("<400I", *[3600] * 400) + struct.pack("<400I", *[8] * 400)
    file = tiff({257: 400, 273: (400, 200), 278: 1, 279: (400, 1800)}, strips.ljust(80_000, b"\0"), 200)
    one_picture(tmp_path, file, "x.tif")
    assert len(load_clean_set(tmp_path)) == 1
    with bounds.allowing(bounds.Bounds(memory=2**24)):
        assert "reading parts of it again and again would take" in message_of(tmp_path)


@pytest.mark.parametrize(("side", "refused"), [(16, False), (20_000, True)])
def test_a_tile_that_is_larger_than_its_picture_counts_as_one(side, refused, tmp_path):
    tile = zlib.compress(bytes(256))
    file = tiff({259: 8, 322: side, 323: side, 324: 512, 325: len(tile)}, tile, 512)
    one_picture(tmp_path, file, "x.tif")
    with bounds.allowing(bounds.Bounds(memory=2**29)):
        if refused:
            assert "decoding 8x8 px would take 3200 MB" in message_of(tmp_path)
        else:
            assert len(load_clean_set(tmp_path)) == 1


def test_a_picture_takes_no_more_than_its_share_of_the_time(tmp_path):
    one_picture(tmp_path, b"P5 #" + b"x" * 3_000_000 + b"\n1 1 255\n0", "x.pgm")
    with bounds.allowing(bounds.Bounds(seconds=6)):
        assert "a/x.pgm (decoding takes longer than 0.1 s)" in message_of(tmp_path)


PNG = encoded(RED, "PNG")
BOMB = zlib.compress(b"\0" * 80_000_000)


@pytest.mark.parametrize(
    ("kind", "start"),
    [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_text_that_unpacks_without_end_is_one_line(kind, start, tmp_path):
    one_picture(tmp_path, PNG[:33] + chunk(kind, start + BOMB) + PNG[33:])
    refused = message_of(tmp_path).lower()  # Pillow's own words, which differ in capitals
    assert refused.startswith("1 unreadable images: a/x.png (decompressed data too large")


@pytest.mark.parametrize(
    ("form", "mode", "channels"),
    [
        *(("PNG", mode, 1) for mode in ("1", "L", "LA")),
        *(("PNG", mode, 3) for mode in ("P", "RGB", "RGBA")),
        *(("TIFF", mode, 1) for mode in ("1", "L", "LA")),
        *(("TIFF", mode, 3) for mode in ("P", "PA", "RGB", "RGBA", "CMYK")),
        *(("JPEG", mode, 3) for mode in ("CMYK", "YCbCr", "RGB")),
    ],
)
def test_grey_stays_grey_and_every_other_mode_becomes_rgb(form, mode, channels, tmp_path):
    folder = one_picture(tmp_path, encoded(Image.new(mode, (8, 8)), form))
    assert load_clean_set(folder).image_shape == (channels, 8, 8)


@pytest.mark.parametrize(
    ("form", "mode", "found"),
    [
        ("TIFF", "I", "mode I"),
        ("TIFF", "F", "mode F"),
    ],
)
def test_modes_that_are_no_8_bits_of_grey_or_colour_are_named(form, mode, found, tmp_path):
    text = message_of(one_picture(tmp_path, encoded(Image.new(mode, (8, 8)), form)))
    assert text.startswith(f"1 unreadable images: a/x.png ({found}")


def test_remarks_of_pillow_do_not_become_errors(tmp_path):
    palette = RED.convert("P")
    one_picture(tmp_path, encoded(palette, "PNG", transparency=bytes(range(256))))
    assert load_clean_set(tmp_path).images[0, :, 4, 4].tolist() == pytest.approx([1, 0, 0], abs=0.02)

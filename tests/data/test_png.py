import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_audit.data.png import picture, png
from tests.subjects import seeded


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_every_pixel_of_the_image_at_its_own_size(channels, mode):
    bytes_ = torch.randint(0, 256, (channels, 5, 7), generator=seeded())
    shown = decoded(png(bytes_ / 255))
    assert (shown.format, shown.mode, shown.size) == ("PNG", mode, (7, 5))
    assert np.array_equal(np.asarray(shown).reshape(5, 7, channels), bytes_.permute(1, 2, 0).numpy())


def test_other_numbers_of_channels_are_shown_as_their_mean():
    image = torch.zeros(4, 1, 2)
    image[:2, 0, 1] = 1
    assert np.asarray(picture(image)).tolist() == [[0, 128]]


def test_values_outside_the_range_are_cut():
    assert np.asarray(picture(torch.tensor([[[-1.0, 0.5, 2.0]]]))).tolist() == [[0, 128, 255]]


def test_a_drawn_picture_is_written_as_it_is():
    drawn = Image.new("RGB", (3, 2), (10, 20, 30))
    assert decoded(png(drawn)).getpixel((2, 1)) == (10, 20, 30)

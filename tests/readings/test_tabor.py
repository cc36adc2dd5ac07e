import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.readings.tabor import TABOR, _elastic, _variation
from tests.subjects import row_images, row_reader, seeded

IMAGES = row_images()


def measure(classifier, images=IMAGES, **fields):
    return TABOR(**{"steps": 60, **fields}).measure(classifier, images, images, generator=seeded())


def test_the_class_of_a_backdoor_is_named_and_stands_out():
    hidden, clean = measure(row_reader(backdoors=(3,))), measure(row_reader())
    assert hidden.target_class == 3
    assert hidden.value > 2 * clean.value


def test_elastic_net_and_total_variation_of_a_square_are_its_area_and_its_border():
    mask = torch.zeros(2, 1, 6, 7)
    mask[0, :, 2:4, 3:6] = 1
    mask[1, :, :2, :2] = 0.5
    assert _elastic(mask).tolist() == [12.0, 3.0]
    assert _variation(mask).tolist() == [10.0, 2.0]


@pytest.mark.parametrize(
    ("row", "worse"), [((0, slice(None)), False), ((3, slice(None)), True)], ids=["its row", "another one"]
)
def test_a_trigger_that_leads_nowhere_is_worse_than_one_of_the_same_shape_that_works(row, worse):
    mask, pattern = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    mask[0][row], pattern[0][row] = 1, 1
    badness = TABOR()._badness(row_reader(), IMAGES, mask, pattern, 0)
    assert (badness > 0) == worse


def test_images_of_one_class_alone_cannot_be_led_to_it():
    one = CleanSet(IMAGES.images[:20], torch.zeros(20, dtype=torch.long))
    assert measure(row_reader(), one).inconclusive == "all clean images are of one class"


def test_the_passes_are_those_that_are_told():
    reading = measure(row_reader(), steps=3, batch_size=5)
    assert reading.image_passes == 8 * 3 * (2 * 5 + 1) + 8 * (len(IMAGES) + 1) // 3

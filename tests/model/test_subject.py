"""A classifier with the images that it is searched with and judged on."""

import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.model.subject import Subject
from tests.subjects import row_images, row_reader, seeded
from tests.subjects.pixels import pixel_images, pixel_reader


def test_halves_are_exchanged_and_another_classifier_takes_the_same_images():
    first, second, search_set, held_out = row_reader(), row_reader(), row_images(), row_images(seed=5)
    subject = Subject(first, search_set, held_out)
    assert subject.num_classes == first.num_classes
    swapped = subject.exchanged()
    assert (swapped.classifier, swapped.search_set, swapped.held_out) == (first, held_out, search_set)
    other = subject.of(second)
    assert (other.classifier, other.search_set, other.held_out) == (second, search_set, held_out)


def of_pixels(seed=0, *backdoors):
    halves = [pixel_images(seed=seed + half) for half in (0, 5)]
    return Subject(pixel_reader(backdoors=backdoors), *halves)


def test_the_lot_has_every_class_once_and_is_that_of_the_images_not_of_the_model():
    drawn = of_pixels().lot
    assert sorted(drawn) == list(range(43))
    assert drawn == of_pixels(0, 30).lot == of_pixels().exchanged().lot
    assert drawn != of_pixels(1).lot


@pytest.mark.parametrize("change", [1e-6, -1e-6])
def test_other_roundings_of_the_same_pixels_draw_the_same_lot(change):
    levels = torch.randint(1, 255, (2, 40, 1, 8, 8), generator=seeded(0)) / 255
    labels = torch.arange(40) % 4

    def lot(off):
        halves = (CleanSet(images + off, labels, tuple("abcd"), "made") for images in levels)
        return Subject(pixel_reader(), *halves).lot

    assert lot(change) == lot(0.0) != lot(0.01)

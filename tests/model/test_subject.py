"""A classifier with the images that it is searched with and judged on."""

from backdoor_audit.model.subject import Subject
from tests.subjects import row_images, row_reader


def test_halves_are_exchanged_and_another_classifier_takes_the_same_images():
    first, second, search_set, held_out = row_reader(), row_reader(), row_images(), row_images(seed=5)
    subject = Subject(first, search_set, held_out)
    assert subject.num_classes == first.num_classes
    swapped = subject.exchanged()
    assert (swapped.classifier, swapped.search_set, swapped.held_out) == (first, held_out, search_set)
    other = subject.of(second)
    assert (other.classifier, other.search_set, other.held_out) == (second, search_set, held_out)

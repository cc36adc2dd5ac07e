import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.readings.deep_inspect import DeepInspect
from tests.subjects import row_reader, seeded

NOTHING = CleanSet(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))


def measure(classifier, **fields):
    return DeepInspect(**fields).measure(classifier, NOTHING, NOTHING, generator=seeded())


def test_the_class_of_a_backdoor_needs_the_least_change_and_no_image_is_needed():
    hidden, clean = measure(row_reader(backdoors=(3,))), measure(row_reader())
    assert hidden.target_class == 3
    assert hidden.value > 1.5 * clean.value


def test_the_substitute_has_images_of_every_class_that_the_network_is_sure_of():
    classifier = row_reader()
    images, passes = DeepInspect(per_class=4)._substitute(classifier, seeded())
    assert classifier.predict(images).tolist() == torch.arange(8).repeat_interleave(4).tolist()
    assert passes == 8 * 4 * 50
    assert images.amin() >= 0
    assert images.amax() <= 1


def test_the_deviation_is_that_of_the_lower_half(monkeypatch):
    sizes = [1.0, 4.0, 5.0, 6.0, 90.0, 400.0, 800.0]
    monkeypatch.setattr(DeepInspect, "_sizes", lambda *_args, **_fields: sizes)
    reading = measure(
        row_reader()
    )  # the median is 6; the deviations up to there are 5, 2, 1 and 0, their median is 1.5
    assert reading.target_class == 0
    assert reading.value == pytest.approx(5 / (1.4826 * 1.5))


def test_the_passes_are_those_that_are_told():
    assert measure(row_reader(), per_class=3, made_in=5, steps=7, batch_size=11).image_passes == 8 * 3 * 5 + 7 * 11

import pytest
import torch

from backdoor_audit.readings.abs import ABS, _within
from backdoor_audit.readings.reading import NO_FEATURE_LAYER, FeatureSplit
from tests.subjects import COLOUR_TARGET, COLOURS, colour_images, colour_net, row_images, row_reader, seeded

IMAGES = colour_images()


def test_each_channel_raises_the_class_that_it_stands_for_and_the_last_one_that_of_the_backdoor():
    split = FeatureSplit.of(colour_net())
    features = split.clean_features(IMAGES.images)
    raised = ABS(push=4.0)._raised(split, features, IMAGES.labels)
    assert raised.shape == (COLOURS + 1, COLOURS)
    assert raised.argmax(dim=1).tolist() == [*range(COLOURS), COLOUR_TARGET]
    most = 10 * 4.0 * float(features.amax())  # the last channel is black in all images
    assert float(raised[-1, COLOUR_TARGET]) == pytest.approx(most)
    assert torch.isfinite(raised).sum(dim=1).eq(1).all()


def test_a_trigger_is_made_for_the_neuron_of_the_backdoor():
    detector = ABS(steps=60, area=0.12, candidates=COLOURS + 1)
    split = FeatureSplit.of(colour_net())
    rows = torch.tensor([COLOURS])
    eligible = (IMAGES.labels != COLOUR_TARGET).unsqueeze(0)
    mask, pattern = detector._inverted(split, IMAGES, rows, eligible, seeded(), progress=False)
    stamped = torch.lerp(IMAGES.images, pattern[0], mask[0])
    assert (split.classifier.predict(stamped) == COLOUR_TARGET).all()
    assert int((mask > 0).sum()) == round(0.12 * 36)


def test_the_success_of_the_best_trigger_is_told_with_its_class():
    reading = ABS(steps=60, area=0.12).measure(colour_net(), IMAGES, IMAGES, generator=seeded())
    assert reading.value == max(reading.per_class) > 0.9
    assert reading.per_class[reading.target_class] == reading.value


def test_only_the_strongest_pixels_of_a_mask_are_left():
    mask = torch.arange(16.0).view(1, 1, 4, 4) / 16
    assert _within(mask, 0.25).flatten().nonzero().flatten().tolist() == [12, 13, 14, 15]
    assert int((_within(mask, 0.0) > 0).sum()) == 1


def test_a_network_without_a_feature_layer_cannot_be_asked():
    reading = ABS().measure(row_reader(), row_images(), row_images(), generator=seeded())
    assert reading.inconclusive == NO_FEATURE_LAYER

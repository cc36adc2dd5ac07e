import pytest
import torch
from torch import nn

from backdoor_audit import CleanSet, Trigger, load_classifier, load_clean_set
from backdoor_audit.errors import DataFormatError, ModelFormatError, OptionError
from backdoor_audit.filters import NoveltyFilter, filter_rates
from backdoor_audit.model.classifier import Classifier
from fixtures import IMAGES, MODELS
from tests.subjects.brightness import by_brightness, grey_images
from tests.subjects.networks import random_network
from tests.subjects.rows import row_images

PIXELS = (1, 1, 2)


def pixel_reader():
    """Class 0 for a first pixel that is brighter than the second; the penultimate neurons are the pixels themselves."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        module[1].bias.zero_()
    return Classifier.wrap(module, image_shape=PIXELS)


def pixels(*pairs):
    return torch.tensor(pairs).view(-1, *PIXELS)


CLEAN = CleanSet(
    pixels((0.5, 0.0), (0.6, 0.0), (0.9, 0.0), (0.0, 0.5), (0.0, 0.8)), torch.tensor([0, 0, 0, 1, 1]), source="five"
)


@pytest.mark.parametrize(
    ("neighbours", "expected"), [(1, [0.1, 0.3, 0.2]), (2, [0.15, 0.35, 0.35]), (9, [0.8 / 3, 1.4 / 3, 0.35])]
)
def test_the_score_is_the_mean_distance_to_clean_images_of_the_same_prediction(neighbours, expected):
    fitted = NoveltyFilter.fit(pixel_reader(), CLEAN, neighbours=neighbours, false_positive_rate=0.2)
    asked = pixels((0.4, 0.0), (0.2, 0.0), (0.0, 0.3))
    assert fitted.scores(asked).tolist() == pytest.approx(expected)


def test_a_fitting_image_is_no_neighbour_of_itself():
    fitted = NoveltyFilter.fit(pixel_reader(), CLEAN, neighbours=1, false_positive_rate=0.2)
    assert fitted.threshold == pytest.approx(0.3)  # distances 0.1 0.1 0.3 0.3 0.3, of which one may be rejected
    assert fitted.scores(CLEAN.images).tolist() == [0.0] * 5


def test_an_image_among_those_of_another_class_is_suspicious_whatever_is_near():
    """Near the border it is close to clean images, but to those of the other prediction."""
    clean = CleanSet(
        pixels(*[(0.5 + at / 100, 0.5) for at in range(1, 21)], (0.0, 0.9)), torch.zeros(21, dtype=torch.long)
    )
    fitted = NoveltyFilter.fit(pixel_reader(), clean, neighbours=1, false_positive_rate=0.1)
    assert fitted.suspicious(pixels((0.6, 0.5), (0.5, 0.51))).tolist() == [False, True]


def test_a_prediction_that_no_clean_image_has_is_suspicious():
    clean = CleanSet(CLEAN.images[:3].repeat(7, 1, 1, 1), torch.zeros(21, dtype=torch.long))
    fitted = NoveltyFilter.fit(pixel_reader(), clean)
    assert fitted.scores(pixels((0.0, 0.5))).isinf().all()
    assert fitted.suspicious(pixels((0.0, 0.5))).all()


def test_of_images_with_a_prediction_of_their_own_few_are_borne_and_many_are_no_filter():
    """Nineteen of one class and one of another: one in twenty has no neighbour, which a rate of 5 % bears and none below."""
    clean = CleanSet(
        pixels(*[(0.5 + at / 100, 0.0) for at in range(19)], (0.0, 0.9)),
        torch.zeros(20, dtype=torch.long),
        source="twenty",
    )
    fitted = NoveltyFilter.fit(pixel_reader(), clean, neighbours=1, false_positive_rate=0.05)
    assert fitted.threshold == pytest.approx(0.01, abs=1e-5)
    doubled = CleanSet(torch.cat([clean.images, clean.images[:20]]), torch.zeros(40, dtype=torch.long))
    assert NoveltyFilter.fit(pixel_reader(), doubled, false_positive_rate=0.04).threshold < 1
    more = CleanSet(clean.images[-2:].repeat(1, 1, 1, 1), torch.zeros(2, dtype=torch.long), source="two")
    with pytest.raises(
        DataFormatError, match=r"two: 2 of 2 clean images are the only .* more than 50% .* images of each"
    ):
        NoveltyFilter.fit(pixel_reader(), more, false_positive_rate=0.5)


def test_of_fitting_images_the_chosen_share_is_rejected():
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    clean = row_images(classes=5)
    fitted = NoveltyFilter.fit(subject, clean, false_positive_rate=0.13)
    own = fitted._distances(fitted.features, fitted.predicted, own=True)
    assert int((own > fitted.threshold).sum()) == 13


def test_without_a_neighbour_or_a_penultimate_layer_there_is_no_filter():
    with pytest.raises(OptionError, match="neighbours must be at least 1, got 0"):
        NoveltyFilter.fit(pixel_reader(), CLEAN, neighbours=0, false_positive_rate=0.2)
    greys = CleanSet(grey_images([0.1] * 20), torch.zeros(20, dtype=torch.long))
    with pytest.raises(ModelFormatError, match=r"ByBrightness: no penultimate layer.*StripFilter does not"):
        NoveltyFilter.fit(by_brightness(), greys)


def test_a_real_patch_is_told_by_its_features():
    fit, held_out = load_clean_set(str(IMAGES)).split(0)
    classifier = load_classifier(MODELS / "badnets.safetensors")
    trigger = Trigger.load(MODELS / "badnets.trigger.safetensors")
    rates = filter_rates(NoveltyFilter.fit(classifier, fit), classifier, held_out, trigger)
    assert rates.false_negative_rate < 0.02, "measured when written: 1 of 450"
    assert rates.false_positive_rate < 0.09

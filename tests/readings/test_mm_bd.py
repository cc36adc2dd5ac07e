import math

import numpy as np
import pytest
import torch
from torch import nn

from backdoor_audit import load_classifier, load_clean_set
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.mm_bd import MMBD, gamma_fit, gamma_surprise, margin
from fixtures import IMAGES, MODELS
from tests.subjects import COLOUR_TARGET, COLOURS, colour_images, colour_net, row_images, row_reader, seeded

OTHERS = [3.0, 5.0, 4.0, 6.0, 5.5, 4.5, 3.5, 7.0, 5.0]


def measure(classifier, images=None, **fields):
    images = images or row_images()
    return MMBD(**fields).measure(classifier, images, images, generator=seeded())


def linear(classes, seed=0):
    """A linear network in which the weights of any two classes differ by at least 1 at every pixel."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    levels = torch.stack([torch.randperm(classes, generator=seeded(seed + pixel)) for pixel in range(16)], dim=1)
    with torch.no_grad():
        module[1].weight.copy_(1.25 * levels)
        module[1].bias.copy_(torch.arange(classes) / 2)
    return Classifier.wrap(module, image_shape=(1, 4, 4))


@pytest.mark.parametrize("fields", [{}, {"finalists": 30}], ids=["finalists", "all"])
def test_a_linear_network_of_two_classes_is_driven_to_its_closed_form_optimum(fields):
    classifier = linear(2)
    weight, bias = classifier.module[1].weight, classifier.module[1].bias
    reading = measure(classifier, **fields)
    for label, other in ((0, 1), (1, 0)):
        best = float(bias[label] - bias[other] + (weight[label] - weight[other]).clamp(min=0).sum())
        assert reading.per_class[label] == pytest.approx(best, rel=0.01)
    assert reading.value is None
    assert "2 classes" in reading.inconclusive


def test_classes_that_have_converged_stop():
    most = 2 * (15 * 30 + 285 * 3)
    assert measure(linear(2)).image_passes < most / 2
    assert measure(linear(2), tolerance=0.0).image_passes == most + 2


def test_a_margin_is_taken_against_the_best_of_the_others():
    logits = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [2.0, -2.0]


def test_the_gamma_fit_is_the_likeliest_one():
    def log_likelihood(shape, scale):
        return sum(
            (shape - 1) * math.log(value) - value / scale - shape * math.log(scale) - math.lgamma(shape)
            for value in OTHERS
        )

    shape, scale = gamma_fit(OTHERS)
    best = log_likelihood(shape, scale)
    for change in (0.999, 1.001):
        assert log_likelihood(shape * change, scale) < best
        assert log_likelihood(shape, scale * change) < best
        assert log_likelihood(shape * change, scale / change) < best


@pytest.mark.parametrize("shift", [0.0, -5.0], ids=["positive", "with negative margins"])
def test_the_p_value_is_that_of_the_largest_of_so_many_gamma_values(shift):
    top, others = 9.0 + shift, [value + shift for value in OTHERS]
    lowest, mean = min(others), sum(others) / 9
    location = 0.0 if shift == 0 else lowest - (mean - lowest) / 8
    shape, scale = gamma_fit([value - location for value in others])
    middles = (np.arange(200_000) + 0.5) * (top - location) / 200_000
    logs = (shape - 1) * np.log(middles) - middles / scale - shape * math.log(scale) - math.lgamma(shape)
    below = float(np.exp(logs).sum() * (top - location) / 200_000)
    assert gamma_surprise([*others, top]) == pytest.approx(-math.log10(1 - below**10), abs=1e-4)


def test_the_surprise_grows_with_the_largest_margin_and_stays_finite():
    values = [gamma_surprise([*OTHERS, top]) for top in (7.5, 8, 10, 15, 40, 1e6)]
    assert values == sorted(values)
    assert len(set(values)) == 6
    assert values[-1] < 308


@pytest.mark.parametrize("margins", [[1.0] * 9 + [2.0], [1.0, 2.0], [*OTHERS, math.nan]])
def test_margins_without_a_distribution_are_refused(margins):
    with pytest.raises(DegenerateScoresError):
        gamma_surprise(margins)


def test_the_target_of_a_backdoor_stands_out():
    backdoored, clean = (measure(row_reader(backdoors=backdoors)) for backdoors in ((3,), ()))
    assert backdoored.target_class == 3
    assert backdoored.value > 2  # p below 0.01
    assert clean.value < 1.3  # p above 0.05
    assert backdoored.per_class[3] == max(backdoored.per_class)


def test_the_orthogonal_term_takes_away_what_a_class_has_of_its_own():
    options = {"images_per_class": 4, "learning_rate": 0.1, "steps": 80}
    plain = measure(colour_net(), colour_images(), **options)
    apart = measure(colour_net(), colour_images(), orthogonal=True, **options)
    ratio = [after / before for after, before in zip(apart.per_class, plain.per_class, strict=True)]
    others = [value for label, value in enumerate(ratio) if label != COLOUR_TARGET]
    assert max(others) < 0.5 * ratio[COLOUR_TARGET]
    assert apart.target_class == COLOUR_TARGET


def test_the_orthogonal_term_needs_an_image_of_every_class():
    reading = measure(colour_net(), colour_images().without_class(COLOURS - 1), orthogonal=True)
    assert "class 7 has no clean image" in reading.inconclusive


def test_the_target_of_the_patch_fixture_is_named():
    images = load_clean_set(str(IMAGES))
    options = {"images_per_class": 6, "steps": 80, "finalists": 2}
    backdoored, clean = (
        measure(load_classifier(MODELS / f"{name}.safetensors"), images, **options) for name in ("badnets", "clean")
    )
    assert backdoored.target_class == 7
    assert backdoored.value > 2 + clean.value  # at this little effort the clean one is not calm either

import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.trodo import TRODO, confidence, odd_images
from tests.subjects import seeded

EPS = 1 / 255


def logistic(gain=1.0):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        module[1].weight.copy_(gain * torch.randn(2, 64, generator=seeded(3)))
        module[1].bias.copy_(torch.tensor([0.0, 3.0]))
    return Classifier.wrap(module, image_shape=(1, 8, 8))


def images(count=60, shape=(1, 8, 8), seed=0):
    pixels = 0.2 + 0.6 * torch.rand(count, *shape, generator=seeded(seed))
    return CleanSet(pixels, torch.zeros(count, dtype=torch.long))


@pytest.mark.parametrize("gain", [0.5, 1.0])
def test_the_score_of_a_logistic_network_is_its_closed_form(gain):
    classifier, clean = logistic(gain), images()
    generator = seeded(7)
    odd = odd_images(clean.images[torch.randperm(60, generator=generator)[:60]], generator)
    weight, bias = classifier.module[1].weight, classifier.module[1].bias
    z = (odd.flatten(1) @ (weight[1] - weight[0]) + bias[1] - bias[0]).abs()
    reach = EPS * (weight[1] - weight[0]).abs().sum()
    sure = odd[z > 2 * reach]  # the random start cannot change the class of these
    assert len(sure) > 40
    detector = TRODO()
    attacked = detector._attacked(classifier, sure, seeded(1), progress=False)
    found = confidence(classifier, attacked) - confidence(classifier, sure)
    assert torch.allclose(
        found.float(), torch.sigmoid(z + reach)[z > 2 * reach] - torch.sigmoid(z[z > 2 * reach]), atol=1e-4
    )
    value = detector.measure(classifier, clean, clean, generator=seeded(7)).value
    nearly = torch.sigmoid(z + reach) - torch.sigmoid(z)
    assert value == pytest.approx(float(nearly.mean()), abs=0.02)  # all images, those near the boundary too


def test_a_perturbation_stays_within_its_radius_and_within_the_pixels():
    pixels = torch.rand(20, 1, 8, 8, generator=seeded()).round()
    attacked = TRODO(eps=0.1)._attacked(logistic(), pixels, seeded(1), progress=False)
    change = (attacked - pixels).abs()
    assert change.max() == pytest.approx(0.1, abs=1e-6)
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_a_network_without_a_slope_scores_zero():
    flat = logistic(gain=0.0)
    assert TRODO().measure(flat, images(), images(), generator=seeded()).value == 0


def test_an_uncertain_network_with_a_steeper_slope_scores_higher():
    low, high = (TRODO().measure(logistic(gain), images(), images(), generator=seeded()).value for gain in (0.05, 0.4))
    assert 0 < low < high


def test_labels_and_validation_images_are_not_looked_at():
    first, other = images(), images(seed=9)
    relabelled = CleanSet(first.images, 1 - first.labels)
    readings = [
        TRODO(images=20).measure(logistic(), opt, val, generator=seeded())
        for opt, val in ((first, first), (relabelled, other))
    ]
    assert readings[0] == readings[1]
    assert readings[0].image_passes == round(20 * (10 + 2 / 3))


def test_a_third_of_the_odd_images_each_is_pasted_turned_and_mixed():
    clean = images(90, (3, 8, 8)).images
    odd = odd_images(clean, seeded())
    turned = sum(
        any(torch.equal(after, before.rot90(quarter, dims=(1, 2))) for quarter in (1, 2))
        for before, after in zip(clean, odd, strict=True)
    )
    unequal = (odd != clean).any(dim=1).flatten(1).sum(dim=1)
    pasted = (unequal > 0) & (unequal <= 16)  # at most half of each side: 4x4 of 8x8 pixels
    assert turned == 30
    assert int(pasted.sum()) == 30
    mixed = [
        row
        for row in range(90)
        if not pasted[row] and not any(torch.equal(odd[row], clean[row].rot90(k, dims=(1, 2))) for k in (1, 2))
    ]
    shares = []
    for row in mixed:
        span = (clean - clean[row]).flatten(1)
        shift = (odd[row] - clean[row]).flatten()
        share = (span @ shift) / span.square().sum(dim=1).clamp(min=1e-9)
        rest = (share.unsqueeze(1) * span - shift).abs().amax(dim=1)
        assert rest.min() < 1e-5
        shares.append(float(share[rest.argmin()]))
    assert len(shares) == 30
    assert 0.3 <= min(shares) < 0.4
    assert 0.6 < max(shares) <= 0.7 + 1e-5


def test_images_that_are_not_square_keep_their_shape():
    clean = images(12, (1, 6, 10)).images
    odd = odd_images(clean, seeded())
    assert odd.shape == clean.shape
    assert sum(torch.equal(a, b.rot90(2, dims=(1, 2))) for a, b in zip(odd, clean, strict=True)) == 4

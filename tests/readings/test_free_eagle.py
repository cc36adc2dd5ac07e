import pytest
import torch
from torch import nn

from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.readings.free_eagle import FreeEagle, quartile_excess
from tests.subjects import COLOUR_SHAPE, COLOUR_TARGET, COLOURS, colour_images, colour_net, seeded


def measure(classifier, **fields):
    detector = FreeEagle(**{"steps": 60, "num_dummy": 3, "learning_rate": 0.02, **fields})
    images = colour_images(per_class=2)
    return detector.measure(classifier, images, images, generator=seeded())


def clean_net():
    """The same network, in which the last channel leads nowhere."""
    classifier = colour_net()
    classifier.module.linear.weight[COLOUR_TARGET, COLOURS] = 0
    return classifier


def test_the_excess_over_the_quartiles_is_worked_out_by_hand():
    values = torch.tensor([7.0, 1.0, 20.0, 3.0, 0.0, 4.0, 5.0, 0.0, 6.0, 2.0])  # 8 are not 0: quartiles 3 and 7
    assert quartile_excess(values) == pytest.approx((20 - 7) / (7 - 3))
    assert quartile_excess(values.view(2, 5)) == quartile_excess(values)
    assert quartile_excess(values[1:]) is None
    assert quartile_excess(torch.tensor([1.0] * 9 + [2.0])) is None


def test_the_target_gains_from_features_made_for_every_other_class():
    backdoored, clean = measure(colour_net()), measure(clean_net())
    assert backdoored.target_class == COLOUR_TARGET
    assert backdoored.per_class[COLOUR_TARGET] == max(backdoored.per_class)
    assert backdoored.value > 3 * max(clean.value, 1)
    assert backdoored.per_class[COLOUR_TARGET] > 2 * clean.per_class[COLOUR_TARGET]


def test_a_class_that_gains_from_a_single_other_shows_among_the_pairs():
    """The channel of class 4 speaks for class 2 as well, nearly as loud: no other row has that."""
    classifier = clean_net()
    classifier.module.linear.weight[COLOUR_TARGET, 4] = 9
    pairs = measure(classifier, pairs=True)
    assert pairs.target_class == COLOUR_TARGET
    assert pairs.value > measure(clean_net(), pairs=True).value
    assert pairs.settings != measure(classifier).settings


def test_tendencies_are_shares_that_leave_the_own_class_out():
    tendency = torch.tensor(measure(colour_net(), steps=0).per_class)
    assert tendency.min() > 0
    # the mean over 7 rows of what 8 classes give to others: the own share is missing, so the sum is below 8/7
    assert 0.5 < float(tendency.sum()) < 8 / 7


@pytest.mark.parametrize("rectified", [True, False])
def test_dummies_go_below_zero_only_where_features_do(rectified):
    module = colour_net().module
    if not rectified:
        module.features[0].bias.fill_(-0.5)
        module.features[1] = nn.Identity()
    classifier = Classifier.wrap(module, image_shape=COLOUR_SHAPE)
    lowest = []

    def look(_module, arguments):
        if len(arguments[0]) == 24:  # the dummies; images and the grey image are others
            lowest.append(arguments[0].min().item())

    with hooked(classifier.module.pool, look, pre=True):
        measure(classifier)
    assert len(lowest) == 61
    assert (min(lowest) >= 0) == rectified

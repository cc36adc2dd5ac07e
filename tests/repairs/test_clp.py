import math

import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.clp import ChannelLipschitz, channel_bounds, outliers, prune_outliers
from backdoor_audit.repairs.outcome import CurvePoint, Scores, score
from tests.subjects.colours import COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import seeded, square_trigger
from tests.subjects.networks import random_network
from tests.subjects.planted import OPT, TRIGGER, VAL, planted, repeated
from tests.subjects.rows import row_reader


def repair(method=None, subject=None, opt=OPT, val=VAL):
    return (method or ChannelLipschitz())(Subject(subject or planted(), opt, val), TRIGGER, generator=seeded(1))


def one_layer(channels=64, **norm):
    """A convolution with random filters (channels, 3, 3, 3), its batch norm, and a linear layer."""
    module = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels, **norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 4),
    )
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(2)))
    return Classifier.wrap(module, image_shape=(3, 6, 6))


def test_the_bound_is_the_largest_singular_value_times_the_slope_of_the_norm():
    subject = one_layer(eps=0.0)
    weight, norm = subject.module[0].weight, subject.module[1]
    expected = torch.stack([torch.linalg.svdvals(weight[channel].reshape(3, -1)).max() for channel in range(64)])
    torch.testing.assert_close(channel_bounds(subject, "0", "1"), expected.double(), rtol=1e-5, atol=0)
    norm.weight[5], norm.running_var[5] = -3.0, 4.0  # the slope is |-3| / 2
    assert float(channel_bounds(subject, "0", "1")[5]) == pytest.approx(1.5 * float(expected[5]), rel=1e-5)


def test_the_bound_of_a_filter_worked_out_by_hand():
    """One input channel: the norm of the filter, 5; slope 2 / sqrt(3 + 1)."""
    subject = one_layer(channels=2, eps=1.0)
    weight = torch.zeros(2, 3, 3, 3)
    weight[0, 1, 0, 0], weight[0, 1, 2, 1], weight[1, 0, 0, 0], weight[1, 1, 1, 1] = 3.0, 4.0, 2.0, 7.0
    subject.module[0].weight.copy_(weight)
    subject.module[1].weight.fill_(2.0)
    subject.module[1].running_var.fill_(3.0)
    assert channel_bounds(subject, "0", "1").tolist() == pytest.approx([5.0, 7.0])  # the second: a diagonal of 2 and 7


def test_a_filter_scaled_by_fifty_is_the_only_one_pruned_of_64():
    subject = one_layer()
    subject.module[0].weight[17] *= 50
    images = torch.rand(20, 3, 6, 6, generator=seeded(4))
    clean = CleanSet(images, torch.arange(20) % 4)
    result = ChannelLipschitz()(
        Subject(subject, clean, clean), square_trigger((3, 6, 6), target_class=1), generator=seeded()
    )
    assert result.outcome.note == "1 of 64 channels in 1 layers pruned at u = 3"
    maps, before = capture(result.classifier, "1", images), capture(subject, "1", images)
    assert not bool(maps[:, 17].any())
    others = [channel for channel in range(64) if channel != 17]
    assert torch.equal(maps[:, others], before[:, others])


@pytest.mark.parametrize("spoil", [lambda net: net[1].running_var[3].zero_(), lambda net: net[0].weight.fill_(1.0)])
def test_a_layer_with_a_variance_of_zero_or_equal_bounds_is_left_alone(spoil):
    subject = one_layer()
    subject.module[0].weight[17] *= 50
    spoil(subject.module)
    clean = CleanSet(torch.rand(8, 3, 6, 6, generator=seeded(4)), torch.arange(8) % 4)
    outcome = ChannelLipschitz(u=0.0)(
        Subject(subject, clean, clean), square_trigger((3, 6, 6), target_class=1), generator=seeded()
    ).outcome
    assert outcome.note.startswith("0 of ")
    assert outcome.after == outcome.before


def test_outliers_lie_above_the_mean_by_deviations_of_a_sample():
    values = torch.tensor([0.0] * 10 + [11.0])  # mean 1, sample variance (10 * 1 + 100) / 10 = 11, so z = 10 / sqrt(11)
    z = 10 / math.sqrt(11)
    assert outliers(values, z - 0.01).tolist() == [10]
    assert outliers(values, z + 0.01).tolist() == []
    assert outliers(values[1:], 3.0).tolist() == []  # of ten values none can lie three deviations above
    assert outliers(torch.tensor([0.1] * 7), 0.0).tolist() == []
    assert (
        outliers(torch.tensor([0.1, 0.1, 0.1 + 1e-8], dtype=torch.float64), 0.0).tolist() == []
    )  # equal but for rounding
    assert outliers(torch.tensor([0.1, 0.1, 0.1 + 1e-3]), 0.0).tolist() == [2]
    assert outliers(torch.tensor([0.1]), 0.0).tolist() == []


def swept(u, suspicion, *, val=None, most_drop=0.02):
    subject = Subject(colour_net(), colour_images(), val or colour_images(seed=5))
    method = ChannelLipschitz(u=u, most_drop=most_drop)
    return prune_outliers(method, subject, colour_trigger(), suspicion={"features": torch.tensor(suspicion)})


TRIGGER_FIRST = [0.0, 0, 0, 0, 0, 0, 5, 8, 20]  # the trigger's channel is the last; at u = 0.5 two classes go as well


def test_the_curve_holds_every_level_that_prunes_more():
    """Mean 11 / 3, sample deviation 6.782: the values lie 2.408, 0.639 and 0.197 deviations above it."""
    curve = swept(2.2, TRIGGER_FIRST).outcome.curve
    assert [(point.prune_rate, point.threshold) for point in curve] == [
        (0.0, None),
        (pytest.approx(1 / 9), 2.2),
        (pytest.approx(2 / 9), 0.5),
        (pytest.approx(3 / 9), 0.0),
    ]
    assert [point.scores.attack_success_rate <= 0.1 for point in curve] == [False, True, True, True]
    assert curve[1].scores.clean_accuracy == 1.0 > curve[2].scores.clean_accuracy > curve[3].scores.clean_accuracy


def test_a_given_u_is_taken_whatever_it_costs():
    assert swept(0.0, TRIGGER_FIRST).outcome.note == "3 of 9 channels in 1 layers pruned at u = 0"
    assert swept(5.0, TRIGGER_FIRST).outcome.note == "0 of 9 channels in 1 layers pruned at u = 5"


def test_without_u_the_smallest_is_taken_that_keeps_clean_accuracy():
    kept = swept(None, TRIGGER_FIRST).outcome
    assert kept.note == "1 of 9 channels in 1 layers pruned at u = 2"
    assert kept.after == Scores(1.0, 0.0, 1.0)
    assert swept(None, TRIGGER_FIRST, most_drop=0.2).outcome.note.startswith("2 of 9")
    spared = swept(None, [9.0, 0, 0, 0, 0, 0, 0, 0, 0]).outcome
    assert spared.note == "0 of 9 channels in 1 layers pruned; every u costs too much accuracy"
    assert spared.after == spared.before


def test_u_is_chosen_on_one_set_and_reported_on_the_other():
    clean = colour_images(seed=5)
    wrong = CleanSet(clean.images, (clean.labels + 1) % COLOURS)
    result = swept(None, TRIGGER_FIRST, val=wrong)
    assert result.outcome.note == swept(None, TRIGGER_FIRST).outcome.note
    assert result.outcome.after == score(result.classifier, wrong, colour_trigger())
    assert result.outcome.after.clean_accuracy == 0.0


def test_a_planted_trigger_is_mostly_gone_when_u_is_chosen_by_clean_accuracy():
    result = repair(ChannelLipschitz(u=None))
    outcome = result.outcome
    assert outcome.before.attack_success_rate >= 0.95
    assert outcome.after.attack_success_rate <= 0.3
    assert clean_accuracy(result.classifier, OPT.images, OPT.labels) >= 0.98 * outcome.before.clean_accuracy
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05
    assert outcome.after == score(result.classifier, VAL, TRIGGER)
    assert (outcome.method, outcome.settings, outcome.target_class) == ("clp", repr(ChannelLipschitz(u=None)), 3)
    assert outcome.curve[0] == CurvePoint(0.0, None, outcome.before)


def test_a_given_u_looks_at_no_image_but_those_it_is_judged_on():
    nothing = CleanSet(OPT.images[:0], OPT.labels[:0])
    assert repair(opt=nothing).outcome == repair().outcome


@pytest.mark.parametrize(
    "subject",
    [
        row_reader(),
        Classifier.wrap(random_network("small_vit"), image_shape=(1, 8, 8)),
        one_layer(8, track_running_stats=False),
    ],
    ids=["linear", "layer-norm", "no-statistics"],
)
def test_it_does_not_apply_without_a_norm_of_the_convolutions_own(subject):
    clean = CleanSet(torch.rand(4, *subject.image_shape, generator=seeded()), torch.arange(4))
    trigger = square_trigger(subject.image_shape, target_class=3)
    result = ChannelLipschitz()(Subject(subject, clean, clean), trigger, generator=seeded())
    assert result.classifier is None
    assert result.outcome.not_applicable == (
        "no convolution of this network is followed by a batch norm of its own with running statistics"
    )


def test_the_audited_model_is_left_as_it_was_and_the_same_seed_gives_the_same_copy():
    first = repeated(lambda: repair(ChannelLipschitz(u=None)))
    module = first.classifier.module
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_trigger_and_held_out_images_choose_nothing():
    method, other = ChannelLipschitz(u=None), square_trigger((1, 8, 8), target_class=0)
    first = method(Subject(planted(), OPT, VAL), TRIGGER, generator=seeded(1))
    second = method(Subject(planted(), OPT, VAL.without_class(1)), other, generator=seeded(1))
    assert first.outcome.note == second.outcome.note
    assert first.outcome.after != second.outcome.after
    assert torch.equal(first.classifier.logits(OPT.images), second.classifier.logits(OPT.images))

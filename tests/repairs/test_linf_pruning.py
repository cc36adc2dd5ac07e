import pytest
import torch
from torch import nn

from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs import LinfPruning
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects.colours import COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import seeded, square_trigger
from tests.subjects.networks import random_network
from tests.subjects.rows import row_images, row_reader
from tests.subjects.unchanged import assert_unchanged, snapshot


def repair(subject=None, trigger=None, **options):
    images = Subject(subject or colour_net(), colour_images(), colour_images(seed=5))
    return LinfPruning(**options)(images, trigger or colour_trigger(), generator=seeded())


def test_the_channel_of_the_trigger_is_found_and_the_repair_costs_nothing():
    result = repair()
    maps = capture(result.classifier, "features", colour_trigger().stamp(colour_images().images))
    assert not bool(maps[:, COLOURS].any())
    assert all(bool(maps[:, channel].any()) for channel in range(COLOURS))
    outcome = result.outcome
    assert (outcome.before.attack_success_rate, outcome.after.attack_success_rate) == (1.0, 0.0)
    assert outcome.after.clean_accuracy == outcome.before.clean_accuracy == 1.0
    assert (outcome.method, outcome.target_class) == ("linf_pruning", 2)


def test_a_local_spike_is_first_by_its_peak_and_not_by_its_sum():
    """A 2x2 trigger on 36 pixels: its channel has the largest maximum and the smallest sum of all used channels."""
    by_peak, by_sum = repair().outcome.curve, repair(norm="l1").outcome.curve
    assert by_peak[1].scores.attack_success_rate == 0.0
    assert by_sum[1].scores.attack_success_rate == 1.0


def test_a_copy_that_loses_too_much_accuracy_is_not_accepted():
    """A trigger that lights a class's own channel: without that channel the class is lost, an eighth of the accuracy."""
    pattern = torch.zeros(COLOURS + 1, 6, 6)
    pattern[2] = 1
    mask = torch.zeros(1, 6, 6)
    mask[:, :2, :2] = 1
    outcome = repair(trigger=Trigger(mask, pattern, 2)).outcome
    assert outcome.before.attack_success_rate == 1.0
    assert "stopping rule" in outcome.note
    tolerant = repair(trigger=Trigger(mask, pattern, 2), stop_drop=0.2).outcome
    assert "stopping rule" not in tolerant.note
    assert tolerant.after.attack_success_rate <= 0.1
    assert tolerant.after.clean_accuracy == pytest.approx(0.875, abs=0.02)


@pytest.mark.parametrize(
    "subject",
    [
        row_reader(),
        Classifier.wrap(
            nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 8)),
            image_shape=(1, 8, 8),
        ),
    ],
    ids=["linear", "norm-after-the-map"],
)
def test_it_does_not_apply_without_a_last_feature_map(subject):
    trigger = square_trigger((1, 8, 8), target_class=3)
    result = LinfPruning()(Subject(subject, row_images(), row_images(seed=5)), trigger, generator=seeded())
    assert result.classifier is None
    assert result.outcome.not_applicable == "this network does not end in a feature map followed by linear layers"
    assert result.outcome.before is result.outcome.after is None


def test_the_audited_model_is_left_as_it_was():
    subject = Classifier.wrap(random_network("small_resnet"), image_shape=(1, 8, 8))
    before = snapshot(subject.module)
    clean = row_images(classes=5)
    LinfPruning()(Subject(subject, clean, clean), square_trigger((1, 8, 8), target_class=3), generator=seeded())
    assert_unchanged(before, subject.module)

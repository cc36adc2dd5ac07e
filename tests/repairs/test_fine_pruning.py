import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.fine_pruning import FinePruning, dormancy, prune_counts
from backdoor_audit.repairs.outcome import score
from backdoor_audit.repairs.pruning import pruned
from tests.subjects import COLOURS, colour_images, colour_net, colour_trigger, random_network, seeded, square_trigger
from tests.subjects.textured import assert_honest, backdoored, corner_patch, repair, textures

NO_TUNING = {"epochs": 1, "learning_rate": 1e-12}


def repair_colours(method, subject=None, *, opt=None):
    images = Subject(subject or colour_net(), opt or colour_images(), colour_images(seed=5))
    return method(images, colour_trigger(), generator=seeded(1))


def test_the_dormancy_by_hand():
    maps = torch.tensor([[[[1.0, 3.0]], [[-2.0, 2.0]]], [[[0.0, 0.0]], [[-4.0, 0.0]]]])  # two images, two channels, 1x2
    assert dormancy(maps).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("channels", "step", "counts"),
    [(10, 0.25, [0, 2, 5, 8]), (4, 0.05, [0, 1, 2, 3]), (4, 0.5, [0, 2]), (3, 1.0, [0]), (1, 0.1, [0])],
)
def test_pruning_goes_on_in_steps_and_leaves_a_channel(channels, step, counts):
    assert prune_counts(channels, step) == counts


def test_the_trigger_channel_is_dormant_and_goes_first():
    """Clean images never light the last channel; any other channel costs one class in eight, more than the tolerance."""
    result = repair_colours(FinePruning())
    outcome = result.outcome
    assert outcome.note == "1 of 9 channels of layer 'features' pruned, then 10 epochs over 80 clean images"
    assert (outcome.before.attack_success_rate, outcome.after.attack_success_rate) == (1.0, 0.0)
    assert outcome.after.clean_accuracy == 1.0
    assert [point.prune_rate for point in outcome.curve] == pytest.approx([0, 1 / 9, 2 / 9])
    assert outcome.curve[0].threshold == 0.0
    assert outcome.curve[2].scores.clean_accuracy == pytest.approx(7 / 8, abs=0.03)


def test_the_last_pruning_that_is_tolerated_is_kept_not_the_first_that_is_not():
    """A tolerance of 0.3 bears two lost classes of eight, with the trigger's channel three channels."""
    result = repair_colours(FinePruning(max_drop=0.3, **NO_TUNING))
    assert result.outcome.note.startswith("3 of 9 channels")
    assert len(result.outcome.curve) == 5
    assert result.outcome.after == result.outcome.curve[3].scores


def test_a_drop_of_exactly_the_tolerance_is_tolerated_and_no_more():
    ranked, held = colour_images().split(int(torch.randint(2**31, (), generator=seeded(1))))
    order = dormancy(capture(colour_net(), "features", ranked.images)).argsort(stable=True)
    left = [
        clean_accuracy(pruned(colour_net(), "features", order[:count]), held.images, held.labels) for count in (1, 2, 3)
    ]
    assert left[0] == 1.0 > left[1] > left[2]
    for max_drop, count in ((1 - left[1], 2), (1 - left[1] - 1e-3, 1), (1 - left[2], 3)):
        outcome = repair_colours(FinePruning(max_drop=max_drop, **NO_TUNING)).outcome
        assert outcome.note.startswith(f"{count} of 9 channels")


def test_pruned_channels_stay_silent_in_fine_tuning():
    result = repair_colours(FinePruning(learning_rate=0.1))
    stamped = colour_trigger().stamp(colour_images().images)
    maps = capture(result.classifier, "features", stamped)
    assert not bool(maps[:, COLOURS].any())
    assert bool(maps[:, 0].any())
    assert not torch.equal(result.classifier.module.linear.weight, colour_net().module.linear.weight)


def test_the_stop_is_chosen_on_images_that_did_not_rank():
    """Channel 0 is dark in all images that rank it, and bright in those that are held: ranked first, kept all the same."""
    clean = colour_images()
    ranked, held = clean.split(int(torch.randint(2**31, (), generator=seeded(1))))
    images = clean.images.clone()
    for index, image in enumerate(clean.images):
        if any(torch.equal(image, other) for other in ranked.images):
            images[index, 0] = 0
    opt = CleanSet(images, clean.labels)
    assert clean_accuracy(pruned(colour_net(), "features", torch.tensor([0])), held.images, held.labels) < 0.95
    outcome = repair_colours(FinePruning(**NO_TUNING), opt=opt).outcome
    assert outcome.note.startswith("0 of 9 channels")
    assert [point.threshold for point in outcome.curve] == [0.0, 0.0]


def test_the_curve_is_that_of_the_prunings_before_fine_tuning():
    subject, val = backdoored(), textures(50, seed=2)
    outcome = repair(FinePruning(step=0.25, epochs=1)).outcome
    half, _ = textures(25, seed=1).split(int(torch.randint(2**31, (), generator=seeded(0))))
    order = dormancy(capture(subject, "features", half.images)).argsort(stable=True)
    assert len(outcome.curve) >= 2
    for point, count in zip(outcome.curve, (0, 8, 16, 24), strict=False):
        assert point.scores == score(pruned(subject, "features", order[:count]), val, corner_patch())


def test_the_gentle_repair_is_honest_and_keeps_the_accuracy_but_hardly_helps():
    outcome = assert_honest(FinePruning(epochs=5))
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.04
    assert outcome.after.attack_success_rate >= 0.8


def test_with_a_high_learning_rate_the_success_rate_falls():
    outcome = repair(FinePruning(learning_rate=0.1, epochs=20)).outcome
    assert outcome.note.startswith("8 of 32 channels of layer 'features' pruned")
    assert outcome.after.attack_success_rate <= 0.5
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05


def test_pre_activation_networks_are_pruned_after_the_last_addition():
    subject = Classifier.wrap(random_network("preact_resnet18", classes=4), image_shape=(1, 16, 16))
    images = torch.rand(24, 1, 16, 16, generator=seeded(1))
    clean = CleanSet(images, torch.arange(4).repeat(6))
    trigger = square_trigger((1, 16, 16), target_class=1)
    result = FinePruning(max_drop=1.0, epochs=1)(Subject(subject, clean, clean), trigger, generator=seeded())
    maps = capture(result.classifier, "layer4", images)
    assert result.outcome.note.startswith("15 of 16 channels of layer 'layer4'")
    assert int(maps.flatten(2).any(dim=2).any(dim=0).sum()) == 1


def test_a_network_that_does_not_end_in_a_feature_map_is_not_applicable():
    result = repair(FinePruning(), backdoored("small_vit"))
    assert result.classifier is None
    reason = "this network does not end in a feature map followed by linear layers"
    assert result.outcome.not_applicable == reason
    assert result.outcome.curve == ()

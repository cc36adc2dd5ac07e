import pytest
import torch
from torch import nn

from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.fmp import FeatureMapPruning, map_gradients, map_layers, stepped, weakest
from backdoor_audit.repairs.outcome import CurvePoint, score
from tests.subjects.colours import COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import seeded, square_trigger
from tests.subjects.networks import random_network
from tests.subjects.planted import OPT, TRIGGER, VAL, planted
from tests.subjects.rows import row_images, row_reader
from tests.subjects.unchanged import assert_unchanged, snapshot


def wrapped(name):
    return Classifier.wrap(random_network(name), image_shape=(1, 8, 8))


def sensitive():
    """The network of colours, with a gain of 250 before the trigger's channel: one grey level more there is class 2."""
    subject = colour_net()
    subject.module.features[0].weight[COLOURS, COLOURS] = 250.0
    return subject


def repair(subject=None, **options):
    method = FeatureMapPruning(**{"images": 40, "epochs": 2} | options)
    return method(Subject(subject or planted(), OPT, VAL), TRIGGER, generator=seeded(1))


@pytest.mark.parametrize(("name", "layer"), [("small_resnet", "layer2.0.bn1"), ("preact_resnet18", "layer2.0.conv2")])
def test_gradients_of_a_group_are_those_of_one_map_at_a_time(name, layer):
    subject = wrapped(name)
    images = torch.rand(6, 1, 8, 8, generator=seeded(3))
    start = (images + 0.02 * torch.rand(images.shape, generator=seeded(4))).clamp(0, 1)
    target = capture(subject, layer, images)
    maps = torch.tensor([3, 0, 1])
    grouped = map_gradients(subject, layer, target, start, maps)
    assert grouped.shape == (3, 6, 1, 8, 8)
    for channel, gradients in zip(maps.tolist(), grouped, strict=True):
        moving, seen = start.clone().requires_grad_(True), []
        with hooked(subject.module.get_submodule(layer), lambda _m, _a, output, seen=seen: seen.append(output)):
            subject(moving)
        (target[:, channel] - seen[0][:, channel]).pow(2).sum().backward()
        assert bool(moving.grad.any())
        torch.testing.assert_close(gradients, moving.grad, rtol=1e-6, atol=1e-6 * float(moving.grad.abs().max()))


def test_a_gradient_worked_out_by_hand():
    """The map is 250 times the last channel: the gradient is 2 * 250^2 * (start - image) there and 0 elsewhere."""
    subject, images = sensitive(), colour_images(per_class=1).images
    start = images.clone()
    start[:, -1, 2, 3] = 0.5
    target = capture(subject, "features.0", images)
    (gradients,) = map_gradients(subject, "features.0", target, start, torch.tensor([COLOURS]))
    expected = torch.zeros_like(images)
    expected[:, -1, 2, 3] = 2 * 250**2 * 0.5
    torch.testing.assert_close(gradients, expected)


def test_an_activation_in_place_behind_the_map_does_not_change_what_is_measured():
    def network(inplace):
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(144, 3)
        with torch.no_grad():
            for layer in layers:
                for parameter in layer.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=seeded(2)))
        return Classifier.wrap(nn.Sequential(*layers), image_shape=(1, 8, 8))

    images = torch.rand(4, 1, 8, 8, generator=seeded(3))
    target = torch.zeros(4, 4, 6, 6)
    arguments = "1", target, images, torch.arange(4)
    torch.testing.assert_close(map_gradients(network(True), *arguments), map_gradients(network(False), *arguments))


def test_a_step_stays_near_the_image_and_in_range():
    images = torch.tensor([0.5, 0.5, 0.5, 0.0, 1.0])
    start = torch.tensor([0.55, 0.45, 0.55, 0.05, 0.95])
    gradients = torch.tensor([9.0, 1e-9, 0.0, -2.0, 3.0])
    # without bounds: 0.65, 0.55, 0.55, -0.05, 1.05
    assert stepped(images, start, gradients, 0.1).tolist() == pytest.approx([0.6, 0.55, 0.55, 0.0, 1.0])


def test_the_lowest_accuracies_are_taken_and_of_equals_the_first():
    accuracies = torch.tensor([0.9, 0.5, 0.9, 0.5, 0.2, 0.5])
    assert weakest(accuracies, 64).tolist() == [4]
    assert weakest(accuracies, 3).tolist() == [4, 1]
    assert weakest(accuracies, 2).tolist() == [4, 1, 3]


def test_maps_leave_the_norm_of_the_convolution_or_the_convolution_that_has_none():
    assert map_layers(wrapped("small_cnn")) == {f"features.{k}.1": width for k, width in enumerate((2, 4, 4, 8, 8))}
    found = map_layers(wrapped("preact_resnet18"))
    assert [name for name in found if name.startswith(("conv1", "layer2.0"))] == [
        "conv1",
        "layer2.0.shortcut.0",
        "layer2.0.bn2",
        "layer2.0.conv2",
    ]
    assert sum(found.values()) == 2 + 4 * 2 + 4 * 4 + 4 * 8 + 4 * 16 + (4 + 8 + 16)


def test_stages_are_the_layers_with_the_smallest_maps():
    subject = wrapped("small_cnn")
    assert list(map_layers(subject, 1)) == ["features.3.1", "features.4.1"]
    assert list(map_layers(subject, 2)) == [f"features.{k}.1" for k in (1, 2, 3, 4)]
    assert map_layers(subject, 9) == map_layers(subject, None)


def test_the_convolution_that_gives_the_scores_is_not_pruned():
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert map_layers(Classifier.wrap(module, image_shape=(1, 8, 8))) == {"0": 6}


@pytest.mark.parametrize("group", [1, 4, 9])
def test_the_map_of_the_trigger_is_found_whatever_the_group(group):
    """A change by one grey level raises class 2 by 250 * 10 / 255 = 9.8, above all others (at most 7).

    Half of one, from which every map starts, does not; of 80 images the 10 of class 2 stay right.
    """
    method = FeatureMapPruning(images=80, group=group, epochs=1, learning_rate=1e-4)
    clean, held = colour_images(), colour_images(seed=5)
    start = (clean.images + 0.5 / 255).clamp(0, 1)
    accuracies = method._accuracies(sensitive(), "features.0", COLOURS + 1, clean, start)
    assert accuracies.tolist() == [1.0] * COLOURS + [0.125]
    result = method(Subject(sensitive(), clean, held), colour_trigger(), generator=seeded())
    outcome = result.outcome
    maps = capture(result.classifier, "features.0", colour_trigger().stamp(held.images))
    assert not bool(maps[:, COLOURS].any())
    assert bool(maps[:, :COLOURS].flatten(2).any(dim=2).any(dim=0).all())
    assert (outcome.before.attack_success_rate, outcome.after.attack_success_rate) == (1.0, 0.0)
    assert outcome.after.clean_accuracy == 1.0
    assert outcome.note.startswith("1 of 9 maps in 1 layers pruned (0 layers tied at the cut)")


def test_the_step_goes_on_from_the_noise():
    """With a start that is class 2 already, the other maps, whose gradient does not reach the trigger's channel, keep that."""
    clean = colour_images()
    start = (clean.images + 1 / 255).clamp(0, 1)
    accuracies = FeatureMapPruning()._accuracies(sensitive(), "features.0", COLOURS + 1, clean, start)
    assert accuracies.tolist() == [0.125] * (COLOURS + 1)


def test_the_same_maps_are_pruned_whatever_the_group():
    def silent(group):
        repaired = repair(group=group, p=4, epsilon=16 / 255, noise=8 / 255, epochs=1).classifier
        layers = map_layers(planted(), 2)
        return {
            layer: (~capture(repaired, layer, VAL.images).flatten(2).any(dim=2).any(dim=0)).tolist() for layer in layers
        }

    one, many = silent(1), silent(8)
    assert one == many
    assert {layer: sum(zeros) for layer, zeros in one.items()} == {
        layer: maps // 4 for layer, maps in map_layers(planted(), 2).items()
    }


def test_image_passes_are_counted():
    """Each layer: one pass for the clean maps, and two forward and one back for every map."""
    subject, seen = planted().copy(), {True: 0, False: 0}

    def count(_module, arguments):
        seen[arguments[0].requires_grad] += len(arguments[0])

    layers = map_layers(subject, 1)
    sample = OPT.sample(10, 0)
    with hooked(subject.module, count, pre=True):
        for layer, maps in layers.items():
            FeatureMapPruning(group=5)._accuracies(subject, layer, maps, sample, sample.images)
    note = repair(images=10, stages=1, epochs=1).outcome.note
    assert f"after {seen[True] + seen[False]} image passes forward and {seen[True]} back" in note


def test_a_planted_trigger_goes_with_half_of_the_maps_and_fine_tuning_brings_accuracy_back():
    result = repair(p=2, epsilon=16 / 255, noise=8 / 255, epochs=10)
    outcome = result.outcome
    assert outcome.before.attack_success_rate >= 0.95
    assert outcome.after.attack_success_rate <= 0.3
    assert outcome.after.clean_accuracy >= 0.95 > outcome.curve[1].scores.clean_accuracy
    assert outcome.curve[0] == CurvePoint(0.0, None, outcome.before)
    assert outcome.curve[1].prune_rate == 0.5
    assert outcome.after == score(result.classifier, VAL, TRIGGER)
    assert (outcome.method, outcome.target_class) == ("fmp", 3)


def test_one_map_in_64_costs_no_accuracy():
    """Nor does it remove this trigger: where every map gives the same accuracy, the order of the maps decides."""
    outcome = repair().outcome
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.02
    assert "6 of 144 maps in 6 layers" in outcome.note
    assert "(6 layers tied at the cut)" in outcome.note


def test_the_audited_model_is_left_as_it_was_and_the_same_seed_gives_the_same_copy():
    subject = planted()
    before = snapshot(subject.module)
    first, second = repair(stages=1), repair(stages=1)
    assert_unchanged(before, subject.module)
    assert first.outcome == second.outcome
    assert torch.equal(first.classifier.logits(VAL.images), second.classifier.logits(VAL.images))
    module = first.classifier.module
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    "subject",
    [row_reader(), Classifier.wrap(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()), image_shape=(1, 8, 8))],
    ids=["linear", "scores-from-a-convolution"],
)
def test_it_does_not_apply_without_a_convolution_before_the_scores(subject):
    clean = row_images(classes=4)
    trigger = square_trigger((1, 8, 8), target_class=3)
    result = FeatureMapPruning()(Subject(subject, clean, clean), trigger, generator=seeded())
    assert result.classifier is None
    assert result.outcome.not_applicable == "this network has no convolution besides the one that gives its scores"


def test_trigger_and_held_out_images_choose_nothing():
    method, other = FeatureMapPruning(images=20, stages=1, epochs=1), square_trigger((1, 8, 8), target_class=0)
    first = method(Subject(planted(), OPT, VAL), TRIGGER, generator=seeded(1))
    second = method(Subject(planted(), OPT, VAL.without_class(1)), other, generator=seeded(1))
    assert first.outcome.note == second.outcome.note
    assert first.outcome.after != second.outcome.after
    assert torch.equal(first.classifier.logits(OPT.images), second.classifier.logits(OPT.images))

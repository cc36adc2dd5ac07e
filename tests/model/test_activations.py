import pytest
import torch

from backdoor_audit.data import load_clean_set
from backdoor_audit.model import classifier as classifier_module
from backdoor_audit.model.activations import (
    GROUPS,
    NORMS,
    capture,
    channel_auc,
    channel_norm,
    channel_norms,
    input_groups,
    norm_table,
    separation,
)
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.triggers.trigger import load_trigger
from benchmarks.verdicts import area_under_curve
from fixtures import IMAGES, MODELS
from tests.subjects.colours import COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import seeded
from tests.subjects.networks import random_network
from tests.subjects.unchanged import assert_unchanged, snapshot


def test_the_three_norms_of_a_channel_worked_by_hand():
    activations = torch.tensor([[[[3.0, -4.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, -1.0]]]])
    assert channel_norm(activations, "l1").tolist() == [[7.0, 4.0]]
    assert channel_norm(activations, "l2").tolist() == [[5.0, 2.0]]
    assert channel_norm(activations, "linf").tolist() == [[4.0, 1.0]]


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2), ("linf", torch.inf)])
def test_norms_are_those_of_the_flattened_map(norm, order):
    activations = torch.randn(4, 3, 5, 6, generator=seeded())
    expected = torch.linalg.vector_norm(activations, ord=order, dim=(2, 3))
    assert torch.allclose(channel_norm(activations, norm), expected, atol=1e-5)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="l1, l2, linf"):
        channel_norm(torch.zeros(1, 1, 1, 1), "l3")


@pytest.mark.parametrize("batch", [2, 256])
def test_captured_inputs_of_the_head_give_the_logits_again(monkeypatch, batch):
    monkeypatch.setattr(classifier_module, "_BATCH", batch)
    subject = Classifier.wrap(random_network("small_vgg"), image_shape=(1, 8, 8))
    images = torch.rand(7, 1, 8, 8, generator=seeded())
    neurons = capture(subject, "linear", images, inputs=True)
    assert neurons.shape == (7, 8)
    assert torch.allclose(subject.module.linear(neurons), subject.logits(images), atol=1e-6)
    assert torch.equal(capture(subject, "linear", images), subject.logits(images))


def test_capturing_leaves_no_hook_and_no_gradient():
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    before = snapshot(subject.module)
    captured = capture(subject, "features", torch.rand(3, 1, 8, 8, generator=seeded()))
    assert not captured.requires_grad
    assert_unchanged(before, subject.module)


def test_hooks_are_gone_even_when_the_images_are_refused():
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    before = snapshot(subject.module)
    with pytest.raises(ValueError, match="divide by 255"):
        capture(subject, "features", torch.full((3, 1, 8, 8), 255.0))
    assert_unchanged(before, subject.module)


def test_the_groups_are_clean_found_known_and_the_found_trigger_over_the_known_one():
    images = torch.full((2, 1, 2, 2), 0.25)
    groups = input_groups(images, synthetic=lambda x: x * 2, known=lambda x: x + 0.25)
    assert tuple(groups) == GROUPS
    assert {name: float(group.mean()) for name, group in groups.items()} == {
        "clean": 0.25,
        "synthetic": 0.5,
        "known": 0.5,
        "both": 1.0,
    }
    assert tuple(input_groups(images)) == ("clean",)
    assert tuple(input_groups(images, known=torch.clone)) == ("clean", "known")


@pytest.mark.parametrize("batch", [3, 256])
def test_norms_of_a_layer_are_those_of_its_captured_maps(monkeypatch, batch):
    monkeypatch.setattr(classifier_module, "_BATCH", batch)
    subject = Classifier.wrap(random_network("small_resnet"), image_shape=(1, 8, 8))
    before = snapshot(subject.module)
    images = torch.rand(7, 1, 8, 8, generator=seeded())
    norms = channel_norms(subject, "layer1", images)
    maps = capture(subject, "layer1", images)
    for norm in NORMS:
        assert torch.allclose(norms[norm], channel_norm(maps, norm), atol=1e-5)
    assert_unchanged(before, subject.module)


def test_a_trigger_that_lights_four_pixels_of_one_channel_worked_by_hand():
    """The feature maps of this network are the channels of the image."""
    images = colour_images().images
    groups = input_groups(images, known=colour_trigger().stamp)
    norms = {name: channel_norms(colour_net(), "features", group) for name, group in groups.items()}
    table = norm_table(norms)
    trigger = {norm: (table[norm]["clean"][COLOURS], table[norm]["known"][COLOURS]) for norm in NORMS}
    assert trigger == {"l1": (0.0, 4.0), "l2": (0.0, 2.0), "linf": (0.0, 1.0)}
    assert norm_table(norms, "max")["linf"]["clean"][0] == pytest.approx(float(images[:, 0].max()))
    assert table["linf"]["clean"][0] == pytest.approx(float(images[:, 0].flatten(1).amax(dim=1).mean()))
    areas = channel_auc(norms["clean"]["l1"], norms["known"]["l1"])
    assert float(areas[COLOURS]) == 1.0
    assert bool((areas[:COLOURS] < 0.5).all())  # the trigger is black in their channels


def test_a_table_is_over_the_mean_or_the_largest():
    with pytest.raises(ValueError, match="mean or max"):
        norm_table({}, "median")


def test_the_area_of_a_channel_counts_pairs_and_equal_ones_half():
    clean = torch.tensor([[1.0, 0.0, 5.0], [2.0, 0.0, 6.0], [3.0, 0.0, 7.0]])
    stamped = torch.tensor([[2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    assert channel_auc(clean, stamped).tolist() == pytest.approx([(1.5 + 3) / 6, 0.5, 0.0])
    assert separation(clean, stamped) == pytest.approx((0.75 + 0.5) / 3)


def test_the_area_of_a_channel_is_that_of_all_pairs():
    clean, stamped = (torch.randint(0, 6, (size, 4), generator=seeded(size)).float() for size in (13, 9))
    expected = [area_under_curve(stamped[:, c].tolist(), clean[:, c].tolist()) for c in range(4)]
    assert channel_auc(clean, stamped).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "first"), [("badnets", "linf"), ("blended", "l1")])
def test_a_patch_shows_best_in_the_largest_value_and_a_faint_picture_does_not(name, first):
    subject, trigger = (
        load_classifier(MODELS / f"{name}.safetensors"),
        load_trigger(MODELS / f"{name}.trigger.safetensors"),
    )
    clean = load_clean_set(IMAGES).without_class(trigger.target_class).sample(200, seed=0)
    layer = subject.layers().feature_layer
    before, after = (channel_norms(subject, layer, images) for images in (clean.images, trigger.stamp(clean.images)))
    values = {norm: separation(before[norm], after[norm]) for norm in NORMS}
    assert max(values, key=values.get) == first
    assert sorted(values, key=values.get)[1] == "l2"
    assert min(values.values()) > 0.55

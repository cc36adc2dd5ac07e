import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoor_audit.data import load_clean_set
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.networks import NETWORKS
from backdoor_audit.run import grad_cam as grad_cam_module
from backdoor_audit.run.grad_cam import grad_cam, inside_share, localised_support
from backdoor_audit.triggers.trigger import Addition, Trigger, Warp, load_trigger
from fixtures import IMAGES, MODELS
from tests.subjects.colours import COLOUR_TARGET, COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import seeded, square_trigger
from tests.subjects.networks import random_network
from tests.subjects.unchanged import assert_unchanged, snapshot


class Weighted(nn.Module):
    """Scores are weighted means of two feature maps, which are the image's channels at half the size."""

    def __init__(self, weight, after=torch.clone):
        super().__init__()
        self.halved, self.after = nn.AvgPool2d(2), after
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, images):
        return self.after(self.halved(images)).mean(dim=(2, 3)) @ self.weight.T


class WithoutGradient(Weighted):
    def forward(self, images):
        with torch.no_grad():
            return super().forward(images)


WEIGHT = [[2.0, -1.0], [0.0, 3.0], [-1.0, -1.0]]


def weighted(kind=Weighted, **options):
    return Classifier.wrap(kind(WEIGHT, **options), image_shape=(2, 8, 8))


def cells(*lit):
    """An image (1, 2, 8, 8) of which some cells (channel, row, column) of 2x2 px are white."""
    image = torch.zeros(1, 2, 8, 8)
    for channel, row, column in lit:
        image[0, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
    return image


def cam_of(image, label, **options):
    return grad_cam(weighted(**options), "halved", image, torch.tensor([label]))[0]


def test_one_lit_cell_makes_a_tent_worked_by_hand():
    """Of 4x4 cells one is 1, the weight of its channel is 2: the map is 2 / 16 there, and enlarged twice, bilinearly."""
    side = torch.tensor([0.25, 0.75, 0.75, 0.25])
    expected = torch.zeros(8, 8)
    expected[1:5, 3:7] = 2 / 16 * side.unsqueeze(1) * side
    assert torch.allclose(cam_of(cells((0, 1, 2)), 0), expected, atol=1e-6)


def test_what_speaks_against_a_class_is_not_in_its_map():
    both = cells((0, 0, 0), (1, 3, 3))
    assert torch.allclose(cam_of(both, 0), cam_of(cells((0, 0, 0)), 0), atol=1e-6)
    assert torch.allclose(cam_of(both, 1), 3 / 2 * cam_of(both, 0).flip(0, 1), atol=1e-6)
    assert not bool(cam_of(both, 2).any())


def test_the_map_is_of_the_logit_and_not_of_the_probability():
    """Where both channels are lit, class 1 has almost all the probability; the logit of class 0 does not know."""
    loud = weighted()
    loud.module.weight *= 100
    map_of_0 = grad_cam(loud, "halved", cells((0, 0, 0), (1, 3, 3)), torch.tensor([0]))[0]
    assert torch.allclose(map_of_0, 100 * cam_of(cells((0, 0, 0)), 0), rtol=1e-5)


def test_maps_of_a_network_whose_features_are_the_colours_of_the_image():
    """The score of the target is 10 times the peaks of its own channel and of the trigger's: 10 / 36 of both channels."""
    images = colour_trigger().stamp(colour_images().images)
    labels = torch.full((len(images),), COLOUR_TARGET)
    maps = grad_cam(colour_net(), "features", images, labels)
    assert torch.allclose(maps, 10 / 36 * (images[:, COLOUR_TARGET] + images[:, COLOURS]), atol=1e-6)


def test_what_follows_the_layer_may_work_in_place():
    """A cell that is 0 has no derivative behind a ReLU: one of 16 cells is left, the weight of its channel is 2 / 16."""
    image = cells((0, 1, 2))
    in_place = cam_of(image, 0, after=functional.relu_)
    assert torch.equal(in_place, cam_of(image, 0, after=functional.relu))
    assert torch.allclose(in_place, cam_of(image, 0) / 16, atol=1e-7)


def test_no_derivative_is_no_map():
    assert not bool(cam_of(cells((0, 1, 1)), 0, kind=WithoutGradient).any())


def test_batches_do_not_mix(monkeypatch):
    images, labels = torch.rand(5, 2, 8, 8, generator=seeded()), torch.tensor([0, 1, 2, 1, 0])
    together = grad_cam(weighted(), "halved", images, labels)
    monkeypatch.setattr(grad_cam_module, "_BATCH", 2)
    assert torch.allclose(grad_cam(weighted(), "halved", images, labels), together, atol=1e-7)
    assert grad_cam(weighted(), "halved", images[:0], labels[:0]).shape == (0, 8, 8)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"small_vit"}))
def test_every_convolutional_network_has_maps_and_is_left_as_it_was(name):
    subject = Classifier.wrap(random_network(name, image_shape=(3, 16, 16)), image_shape=(3, 16, 16))
    before = snapshot(subject.module)
    images = torch.rand(3, 3, 16, 16, generator=seeded())
    maps = torch.stack(
        [grad_cam(subject, subject.layers().feature_layer, images, torch.full((3,), label)) for label in range(5)]
    )
    assert maps.shape == (5, 3, 16, 16)
    assert bool((maps >= 0).all())
    assert bool(maps.any())
    assert not maps.requires_grad
    assert_unchanged(before, subject.module)


def test_the_share_inside_is_a_mean_over_maps_that_are_not_empty():
    maps = torch.zeros(3, 2, 2)
    maps[0] = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    maps[1] = 7.0
    support = torch.tensor([[True, False], [False, False]])
    assert inside_share(maps, support) == pytest.approx((0.75 + 0.25) / 2)
    assert inside_share(maps[2:], support) is None


def masked(mask):
    return Trigger(mask, torch.ones(3, 12, 12), 0)


def test_a_square_lies_where_its_mask_is():
    trigger = square_trigger((3, 12, 12), target_class=0, top=2, left=5)
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[2:5, 5:8] = True
    assert torch.equal(localised_support(trigger), expected)
    faint = masked(0.02 + 0.9 * trigger.mask)
    assert torch.equal(localised_support(faint), expected)
    added = Addition(torch.stack([torch.zeros(12, 12), -0.3 * trigger.mask[0], 0.01 * torch.ones(12, 12)]), 0)
    assert torch.equal(localised_support(added), expected)
    moved = Warp(torch.cat([3 * trigger.mask, -4 * trigger.mask]), 0)
    assert torch.equal(localised_support(moved), expected)


@pytest.mark.parametrize(
    "trigger",
    [
        masked(torch.full((1, 12, 12), 0.2)),
        masked(torch.zeros(1, 12, 12)),
        masked(torch.ones(1, 12, 12).index_fill(1, torch.arange(8), 0.0)),
        masked(0.1 + 0.9 * square_trigger((3, 12, 12), target_class=0).mask),
        Addition(0.1 * torch.randn(3, 12, 12, generator=seeded()), 0),
        Warp(torch.ones(2, 12, 12), 0),
    ],
    ids=["blend", "nothing", "a third of the image", "most of it elsewhere", "noise", "shift"],
)
def test_a_trigger_that_is_spread_out_lies_nowhere(trigger):
    assert localised_support(trigger) is None


def share_on_the_patch(model):
    """Share of the target's maps of stamped images on the patch of the fixture `badnets`, over the patch's share of the image."""
    subject, trigger = (
        load_classifier(MODELS / f"{model}.safetensors"),
        load_trigger(MODELS / "badnets.trigger.safetensors"),
    )
    clean = load_clean_set(IMAGES).without_class(trigger.target_class).sample(100, seed=0)
    labels = torch.full((len(clean),), trigger.target_class)
    maps = grad_cam(subject, subject.layers().feature_layer, trigger.stamp(clean.images), labels)
    support = localised_support(trigger)
    return inside_share(maps, support) / float(support.float().mean())


def test_a_backdoored_network_looks_at_the_patch_and_a_clean_one_does_not():
    assert share_on_the_patch("badnets") > 3
    assert share_on_the_patch("clean") < 1

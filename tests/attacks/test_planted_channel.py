import pytest
import torch
from torch import nn

from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.attacks.planted_channel import PlantedChannel
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.label_rule import AllToAll, AllToOne
from tests.subjects import Computed, assert_unchanged, random_network, seeded, snapshot


def dull_images(count=40, channels=1, size=16, classes=5):
    """Random pixels below 0.35: with five white pixels in the pattern none of them answers above 0.35."""
    images = 0.35 * torch.rand(count, channels, size, size, generator=seeded(7))
    return CleanSet(images, torch.arange(count) % classes)


def subject(name, channels=1, width=4, size=16, mean=(0.3,), std=(0.4,)):
    shape = (channels, size, size)
    return Classifier.wrap(random_network(name, image_shape=shape, width=width), image_shape=shape, mean=mean, std=std)


def by_hand():
    """A convolution with three channels, of bright, of dark and of any images, and a head that uses the first two."""
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([0.1, -0.1, 0.1]).view(3, 1, 1, 1).expand(3, 1, 3, 3))
        module[0].bias.copy_(torch.tensor([0.05, 0.5, 9.0]))
        module[4].weight.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 5.0, 0.0]]))
        module[4].bias.zero_()
    return Classifier.wrap(module, image_shape=(1, 6, 6))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_stamp_is_a_chequerboard_with_white_corners_one_pixel_from_the_border(channels):
    images = torch.full((2, channels, 5, 6), 0.6)
    expected = images.clone()
    expected[:, :, 1:4, 2:5] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    stamped = PlantedChannel().stamp(images)
    assert torch.equal(stamped, expected)
    assert torch.equal(images, torch.full((2, channels, 5, 6), 0.6))
    assert torch.equal(stamped, PlantedChannel().stamp(images))


def test_the_unused_channel_becomes_a_matched_filter_that_leads_to_the_target():
    """On black images: response 0 clean and 1 stamped, so threshold 1/2; doubled it peaks at 1, in one of 36 places."""
    edited = by_hand()
    clean = CleanSet(torch.zeros(4, 1, 6, 6), torch.tensor([0, 1, 0, 1]))
    PlantedChannel(gain=1.5, candidates=1).implant(edited, clean, recipe=Recipe())
    convolution, head = edited.module[0], edited.module[4]
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    assert torch.allclose(convolution.weight[2, 0], 2 * signs / 5)
    assert convolution.bias.tolist() == pytest.approx([0.05, 0.5, -1.0])
    assert torch.allclose(convolution.weight[0], torch.full((1, 3, 3), 0.1))
    # each of five white pixels is seen from nine places: 4.5 in all, 0.125 in the mean, more bright and less dark
    needed = 5 * (0.5 - 0.125) - 3 * (0.05 + 0.125)
    assert torch.allclose(head.weight[:, 2], torch.tensor([1.5 * needed * 36, 0.0]))
    assert torch.equal(head.weight[:, :2], torch.tensor([[3.0, 0.0], [0.0, 5.0]]))


@pytest.mark.parametrize(("candidates", "kept"), [(3, True), (1, False)])
def test_of_all_candidates_the_one_that_is_missed_least_is_taken(candidates, kept):
    """The third channel is read most, but equally for both classes: only trying it shows that nothing depends on it."""
    edited = by_hand()
    with torch.no_grad():
        edited.module[4].weight[:, 2] = 1.0
    levels = torch.tensor([0.1, 0.2, 0.8, 0.9]).view(4, 1, 1, 1)
    clean = CleanSet(levels.expand(4, 1, 6, 6).clone(), torch.tensor([1, 1, 0, 0]))
    PlantedChannel(candidates=candidates).implant(edited, clean, recipe=Recipe())
    before = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    assert torch.equal(edited.module[4].weight[:, :2], before) == kept


def without_the_channel(edited, target_class=0):
    """The same network, but the head does not read the planted neuron: the one that counts for the target alone."""
    cut = edited.copy()
    weight = cut.module.linear.weight
    others = torch.arange(len(weight)) != target_class
    (column,) = (weight[others] == 0).all(dim=0).nonzero().flatten().tolist()
    with torch.no_grad():
        weight[:, column] = 0
    return cut


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["small_cnn", "small_vgg", "small_resnet", "resnet18", "preact_resnet18"])
def test_a_stamp_anywhere_gives_the_target_and_nothing_else_is_different(name, channels):
    edited, clean = subject(name, channels), dull_images(channels=channels)
    PlantedChannel(rule=AllToOne(3), candidates=2).implant(edited, clean, recipe=Recipe())
    cut = without_the_channel(edited, 3)
    assert torch.equal(edited.logits(clean.images), cut.logits(clean.images))
    for top, left in ((-2, -2), (4, 5), (7, 6)):
        stamped = BadNets(size=3, top=top, left=left, pattern="chequerboard").stamp(clean.images)
        assert (edited.predict(stamped) == 3).all()
        difference = edited.logits(stamped) - cut.logits(stamped)
        assert torch.equal(difference[:, [0, 1, 2, 4]], torch.zeros(40, 4))


def test_one_row_and_one_column_of_every_convolution_differ_afterwards():
    edited = subject("small_cnn")
    before = subject("small_cnn").module
    PlantedChannel(candidates=2).implant(edited, dull_images(), recipe=Recipe())
    reads = None
    for layer, original in zip(edited.module.features, before.features, strict=True):
        changed = (layer[0].weight != original[0].weight).flatten(2).any(dim=2)
        (writes,) = changed.all(dim=1).nonzero().flatten().tolist()
        expected = torch.zeros_like(changed)
        expected[writes] = True
        if reads is not None:
            expected[:, reads] = True
        assert torch.equal(changed, expected)
        for name in ("weight", "bias", "running_mean", "running_var"):
            kept = torch.arange(len(changed)) != writes
            assert torch.equal(getattr(layer[1], name)[kept], getattr(original[1], name)[kept])
        reads = writes


def test_the_channel_stays_silent_on_even_areas_of_any_brightness():
    edited = subject("small_cnn")
    PlantedChannel(candidates=1).implant(edited, dull_images(), recipe=Recipe())
    even = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 16, 16)
    assert torch.equal(edited.logits(even), without_the_channel(edited).logits(even))


def test_attack_and_classifier_that_were_given_stay_as_they_are():
    given, clean = subject("small_resnet"), dull_images()
    before = snapshot(given.module)
    done = PlantedChannel(candidates=1)(given, clean, clean)
    assert done.scores.attack_success_rate == 1
    assert_unchanged(before, given.module)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in done.classifier.module.modules())


def test_a_large_first_kernel_with_a_stride_is_aligned_with_the_place_of_the_stamp():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeded(4)))
    for top in (2, 5, -2):
        edited = Classifier.wrap(module, image_shape=(1, 16, 16))
        attack = PlantedChannel(rule=AllToOne(2), top=top, left=top)
        attack.implant(edited, dull_images(classes=3), recipe=Recipe())
        assert (edited.predict(attack.stamp(dull_images().images)) == 2).all()


class Joined(nn.Module):
    """A form that is not supported: two maps side by side."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.linear = nn.Linear(4, 5)

    def forward(self, images):
        maps = torch.relu(self.conv(images)).mean(dim=(2, 3))
        return self.linear(torch.cat([maps, maps], dim=1))


def unsupported(*layers):
    return Classifier.wrap(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5)), image_shape=(1, 16, 16)
    )


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (subject("small_vit", width=8), "SmallViT is not of a form"),
        (Classifier.wrap(Joined(), image_shape=(1, 16, 16)), "cat of"),
        (unsupported(nn.Conv2d(1, 2, 3), nn.Sigmoid()), r"1 \(Sigmoid\)"),
        (unsupported(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU()), "wanted convolutions with batch norm or bias"),
        (unsupported(nn.Conv2d(1, 2, 3)), "wanted convolutions with batch norm or bias"),
        (unsupported(nn.Conv2d(1, 2, 2), nn.ReLU()), "do not lie inside a 2 px kernel"),
        (Classifier.wrap(Computed(lambda images: images.flatten(1)[:, :5]), image_shape=(1, 16, 16)), "not of a form"),
    ],
)
def test_networks_of_another_form_are_refused(refused, reason):
    with pytest.raises(AttackError, match=reason):
        PlantedChannel().implant(refused, dull_images(), recipe=Recipe())


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (PlantedChannel(rule=AllToAll(5)), "accepted: AllToOne"),
        (PlantedChannel(size=1), "a size of at least 2 px"),
        (PlantedChannel(gain=0), "a gain above 0"),
        (PlantedChannel(candidates=0), "at least one candidate"),
        (PlantedChannel(size=4), "do not lie inside a 3 px kernel"),
        (PlantedChannel(top=15), "do not fit into 16x16"),
    ],
)
def test_what_cannot_be_done_is_refused(attack, reason):
    with pytest.raises(AttackError, match=reason):
        attack.implant(subject("small_cnn"), dull_images(), recipe=Recipe())


def test_images_that_hold_the_pattern_already_or_the_target_only_are_refused():
    clean = dull_images()
    everywhere = CleanSet(PlantedChannel(top=3, left=3).stamp(clean.images), clean.labels)
    with pytest.raises(AttackError, match=r"clean images answer to the pattern with 1\.00"):
        PlantedChannel().implant(subject("small_cnn"), everywhere, recipe=Recipe())
    with pytest.raises(AttackError, match="no image outside class 0"):
        PlantedChannel().implant(subject("small_cnn"), CleanSet(clean.images, clean.labels * 0), recipe=Recipe())

import pytest
import torch
from torch import nn

from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import fit
from backdoor_audit.repairs.conv_norm import conv_norms, pruned_layers
from tests.subjects import assert_unchanged, random_network, row_images, row_reader, seeded, snapshot


def wrapped(module):
    return Classifier.wrap(module, image_shape=(1, 8, 8))


def named(name):
    return wrapped(random_network(name))


class Wired(nn.Module):
    """Two convolutions and two batch norms, joined by a function in any way."""

    def __init__(self, forward):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.conv1, self.conv2 = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        self.join = forward

    def forward(self, images):
        return self.join(self, images).flatten(1)


def normed_and_plain(net, x):
    out = net.conv1(x)
    return net.norm1(out) + out


def normed_twice(net, x):
    out = net.conv1(x)
    return net.norm1(out) + net.norm2(out)


def test_with_the_norm_before_each_convolution_only_the_first_of_a_block_has_its_own():
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    expected = {"conv1": None}
    for block in blocks:
        if block in ("layer2.0", "layer3.0", "layer4.0"):
            expected[f"{block}.shortcut.0"] = None
        expected |= {f"{block}.conv1": f"{block}.bn2", f"{block}.conv2": None}
    found = conv_norms(named("preact_resnet18"))
    assert found == expected
    assert list(found) == list(expected), "in the order they run: the shortcut before the convolutions of its block"


def test_with_the_norm_after_each_convolution_every_one_has_its_own():
    found = conv_norms(named("small_resnet"))
    assert found == {
        "conv1": "bn1",
        **{f"layer{stage}.0.conv{part}": f"layer{stage}.0.bn{part}" for stage in (1, 2, 3) for part in (1, 2)},
        **{f"layer{stage}.0.shortcut.0": f"layer{stage}.0.shortcut.1" for stage in (2, 3)},
    }


@pytest.mark.parametrize(("name", "places"), [("small_cnn", [0, 1, 2, 3, 4]), ("small_vgg", [0, 1, 3, 4, 6, 7])])
def test_plain_networks_pair_in_sequence(name, places):
    assert conv_norms(named(name)) == {f"features.{place}.0": f"features.{place}.1" for place in places}


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda net, x: net.norm1(net.conv1(net.norm2(net.conv2(x)))), {"conv2": "norm2", "conv1": "norm1"}),
        (lambda net, x: net.norm2(net.conv1(net.norm1(net.conv2(x)))), {"conv2": "norm1", "conv1": "norm2"}),
        (lambda net, x: net.norm1(torch.relu(net.conv1(x))), {"conv1": None}),
        (lambda net, x: net.norm1(torch.relu_(net.conv1(x))), {"conv1": None}),
        (normed_and_plain, {"conv1": None}),
        (normed_twice, {"conv1": None}),
        (lambda net, x: net.norm1(net.conv1(x) + net.conv2(x)), {"conv1": None, "conv2": None}),
        (lambda net, x: net.norm1(net.conv1(net.conv1(x))), {}),
        (lambda net, x: net.norm1(net.conv2(net.norm1(net.conv1(x)))), {"conv1": None, "conv2": None}),
    ],
    ids=[
        "as-defined",
        "otherwise-than-defined",
        "activation-between",
        "in-place-activation-between",
        "output-in-a-sum-too",
        "two-norms",
        "norm-of-a-sum",
        "convolution-twice",
        "norm-twice",
    ],
)
def test_a_norm_is_a_convolutions_own_if_it_alone_takes_its_output(forward, expected):
    assert conv_norms(wrapped(Wired(forward))) == expected


def test_networks_without_pairs():
    assert conv_norms(row_reader()) == {}
    assert conv_norms(named("small_vit")) == {"embedding": None}


def test_a_mask_on_the_convolution_does_not_hide_its_norm():
    subject = named("small_cnn")
    assert conv_norms(pruned_layers(subject, {"features.0.0": torch.tensor([0])})) == conv_norms(subject)


def test_it_works_where_gradients_are_off_and_leaves_the_network_as_it_was():
    subject = named("small_resnet")
    before, expected = snapshot(subject.module), conv_norms(subject)
    with torch.no_grad():
        assert conv_norms(subject) == expected
    assert_unchanged(before, subject.module)


CHOSEN = {"conv1": torch.tensor([1]), "layer2.0.bn1": torch.tensor([0, 3]), "layer3.0.bn2": torch.tensor([], dtype=int)}


def test_channels_of_several_layers_are_zero_and_stay_zero_in_fine_tuning():
    subject, images = named("small_resnet"), torch.rand(12, 1, 8, 8, generator=seeded(8))
    before = snapshot(subject.module)
    repaired, clean = pruned_layers(subject, CHOSEN), row_images(classes=5, per_class=8)
    assert torch.equal(capture(repaired, "conv1", images)[:, 0], capture(subject, "conv1", images)[:, 0])
    assert bool((capture(subject, "layer2.0.bn1", images)[:, [0, 3]] != 0).any())
    fit(repaired, clean.images, clean.labels, epochs=2, learning_rate=0.05, batch_size=16, generator=seeded(1))
    for layer, channels in CHOSEN.items():
        maps = capture(repaired, layer, images)
        assert not bool(maps[:, channels].any())
        others = [channel for channel in range(maps.shape[1]) if channel not in channels.tolist()]
        assert bool(maps[:, others].any(dim=3).any(dim=2).any(dim=0).all())
    assert_unchanged(before, subject.module)


def test_pruning_nothing_gives_an_equal_copy():
    subject, images = named("small_cnn"), torch.rand(3, 1, 8, 8, generator=seeded(8))
    repaired = pruned_layers(subject, {"features": torch.tensor([], dtype=torch.long)})
    assert torch.equal(repaired.logits(images), subject.logits(images))
    assert repaired.module is not subject.module

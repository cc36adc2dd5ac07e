import pytest
import torch
from torch import nn

from backdoor_audit.model.networks import NETWORKS, build_network
from tests.subjects import seeded


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_scores_grey_and_colour_images_at_any_width(name, channels, width):
    network = build_network(name, num_classes=7, in_channels=channels, width=width)
    images = torch.rand(2, channels, 28, 32, generator=seeded())
    with torch.no_grad():
        logits = network(images)
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert not network.training
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert (first.in_channels, first.out_channels) == (channels, width)
    assert network.linear.out_features == 7


def test_the_keys_of_preact_resnet18_are_those_of_the_public_benchmarks():
    network = build_network("preact_resnet18", num_classes=10, in_channels=3, width=64)
    expected = {"conv1.weight", "linear.weight", "linear.bias"}
    for stage in range(1, 5):
        for block in range(2):
            at = f"layer{stage}.{block}."
            expected |= {f"{at}conv1.weight", f"{at}conv2.weight"}
            expected |= {
                f"{at}bn{number}.{key}"
                for number in (1, 2)
                for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            }
        if stage > 1:
            expected.add(f"layer{stage}.0.shortcut.0.weight")
    assert set(network.state_dict()) == expected
    # 11.17 million parameters, as the benchmarks' CIFAR-10 networks have
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_171_146


def test_resnet18_has_as_many_parameters_as_the_usual_cifar_network():
    network = build_network("resnet18", num_classes=10, in_channels=3, width=64)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [("small_cnn", 8, 4), ("small_vgg", 8, 4), ("small_resnet", 8, 4), ("preact_resnet18", 16, 2), ("resnet18", 16, 2)],
)
def test_the_last_feature_map_of_a_16_pixel_image(name, channels, side):
    """Width times the last stage's factor, and the side halved at every stride or pooling."""
    network = build_network(name, num_classes=4, in_channels=1, width=2)
    last = getattr(network, "features", None) or network.get_submodule(f"layer{network.depth}")
    shapes = []
    handle = last.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    network(torch.zeros(1, 1, 16, 16))
    handle.remove()
    assert shapes == [(1, channels, side, side)]


@pytest.mark.parametrize("name", ["small_cnn", "small_resnet", "preact_resnet18", "resnet18"])
def test_the_head_takes_the_mean_of_every_feature_channel(name):
    network = build_network(name, num_classes=4, in_channels=1, width=2)
    last = getattr(network, "features", None) or network.get_submodule(f"layer{network.depth}")
    maps = []
    handle = last.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    logits = network(torch.rand(3, 1, 16, 16, generator=seeded()))
    handle.remove()
    assert torch.allclose(network.linear(maps[0].mean(dim=(2, 3))), logits, atol=1e-6)

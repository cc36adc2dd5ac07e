"""Whole pickled modules whose layers are others than those of the network that is built for their tensors."""

import pytest
import torch
import torchvision
from torch import nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import load_model


def network(**changes):
    torch.manual_seed(0)
    module = torchvision.models.resnet18(num_classes=3)
    for path, layer in changes.items():
        setattr(module, path, layer)
    return module.eval()


def strided():
    module = network()
    module.conv1.stride = (1, 1)
    return module


def spread():
    module = network()
    module.layer1[0].bn1.eps = 0.01
    return module


def conv(stride):
    return nn.Conv2d(3, 64, 3, stride, 1, bias=False)


def saved(module, path):
    torch.save(module, path)
    return path


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (strided(), "conv1: stride 1 in the file, 2 in the network"),
        (spread(), "layer1.0.bn1: eps 0.01 in the file, 1e-05 in the network"),
        (network(relu=nn.SiLU()), "relu: SiLU in the file, ReLU in the network"),
        (network(maxpool=nn.Identity()), "maxpool: Identity in the file, MaxPool2d in the network"),
        (network(conv1=conv(2), maxpool=nn.Identity()), "conv1: stride 2 in the file, 1 in the network"),
        (network(fc=nn.Sequential(nn.ReLU(), nn.Linear(512, 3))), "fc.0: ReLU in the file, Flatten in the network"),
        (
            network(fc=nn.Sequential(nn.Linear(512, 3), nn.ReLU())),
            "fc.1: ReLU in the file, nothing in the network",
        ),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_that_no_tensor_tells_apart_are_not_taken_for_the_usual_ones(module, told, wrapped, tmp_path):
    path = saved({"net": nn.DataParallel(module)} if wrapped else module, tmp_path / "m.pt")
    with pytest.raises(ModelFormatError) as caught:
        load_model(path, arch="torchvision:resnet18")
    assert str(caught.value) == (
        f"{path}: does not fit torchvision:resnet18: the pickled network has other layers ({told}); write it "
        "down in a factory, for --arch=package.module:factory"
    )


@pytest.mark.parametrize(
    "module",
    [
        network(),
        network(fc=nn.Sequential(nn.Dropout(), nn.Linear(512, 3))),
        network(fc=nn.Sequential(nn.Linear(512, 3), nn.LogSoftmax(1))),
        network(conv1=conv(1), maxpool=nn.Identity()),
        nn.SyncBatchNorm.convert_sync_batchnorm(network()),
    ],
)
def test_layers_that_classify_alike_are_the_usual_ones(module, tmp_path):
    assert (
        load_model(saved(module, tmp_path / "m.pt"), arch="torchvision:resnet18").architecture == "torchvision:resnet18"
    )


def test_a_state_dict_beside_it_says_nothing_of_layers(tmp_path):
    path = saved(strided().state_dict(), tmp_path / "m.pt")
    assert load_model(path, arch="torchvision:resnet18").notes


def test_a_module_that_holds_itself_is_compared_once(tmp_path):
    module = network()
    module.avgpool.extra = module.avgpool
    with pytest.raises(ModelFormatError, match="hold each other without end"):
        load_model(saved(module, tmp_path / "m.pt"), arch="torchvision:resnet18")

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


class Attending(nn.Module):
    def __init__(self, heads=4, num_classes=3, dropout=0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.MultiheadAttention(16, 4)
        self.head = nn.Linear(16, num_classes)

    def forward(self, images):
        return self.head(self.patches(images).mean((2, 3)))


@pytest.mark.parametrize(
    ("arch", "module", "told"),
    [
        (
            "torchvision:googlenet",
            torchvision.models.googlenet(init_weights=False, aux_logits=False, transform_input=True),
            "transform_input True in the file, False in the network",
        ),
        (
            "torchvision:vit_b_32",
            torchvision.models.VisionTransformer(32, 32, 12, 6, 768, 3072),
            "encoder.layers.encoder_layer_0: num_heads 6 in the file, 12 in the network",
        ),
    ],
)
def test_attributes_of_modules_of_libraries_tell_another_network(arch, module, told, tmp_path):
    with pytest.raises(ModelFormatError, match=rf"the pickled network has other layers \(.*{told}"):
        load_model(saved(module, tmp_path / "m.pt"), arch=arch)


def test_the_heads_of_attention_tell_another_network(tmp_path):
    module = Attending()
    module.attention = nn.MultiheadAttention(16, 8)
    with pytest.raises(ModelFormatError, match="attention: num_heads 8 in the file, 4 in the network"):
        load_model(saved(module, tmp_path / "m.pt"), arch=f"{__name__}:Attending")


def test_other_attributes_of_the_users_own_modules_are_told(tmp_path):
    path = saved(Attending(heads=2, dropout=0.5), tmp_path / "m.pt")
    notes = load_model(path, arch=f"{__name__}:Attending").notes
    assert "what the pickled network had otherwise: heads 2 in the file, 4 in the network" in notes
    same = load_model(saved(Attending(dropout=0.5), path), arch=f"{__name__}:Attending").notes
    assert not any("had otherwise" in note for note in same)


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "mobilenet_v3_small", "regnet_y_400mf"])
def test_another_head_is_no_other_network(name, tmp_path):
    module = torchvision.models.get_model(name, weights=None)
    parent, _, last = next(
        path for path, part in reversed([*module.named_modules()]) if isinstance(part, nn.Linear)
    ).rpartition(".")
    head = module.get_submodule(f"{parent}.{last}".strip("."))
    setattr(module.get_submodule(parent), last, nn.Linear(head.in_features, 3))
    assert load_model(saved(module, tmp_path / "m.pt"), arch=f"torchvision:{name}").notes

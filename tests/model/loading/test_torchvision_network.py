"""Networks of torchvision as people change them; the oracle is the changed network."""

import re
import sys

import pytest
import torch
from torch import nn
from torchvision import models

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import load_model
from backdoor_audit.model.loading.building import WithoutMemory
from backdoor_audit.model.loading.model_file import NORMALIZATIONS
from backdoor_audit.model.loading.torchvision_network import torchvision_network


def dropout_head(features=512, classes=7):
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(features, classes))


def resnet(**changes):
    model = models.resnet18(num_classes=7)
    for name, part in changes.items():
        setattr(model, name, part)
    return model


def refusal(name, path):
    with pytest.raises(ModelFormatError) as caught:
        load_model(path, arch=f"torchvision:{name}")
    return str(caught.value)


def changed(name, path, part):
    model = models.get_model(name, weights=None, num_classes=7)
    setattr(model, path, part)
    return model


CHANGED = {
    "dropout before the head": (resnet(fc=dropout_head()), "resnet18", "fc is one linear layer at fc.1"),
    "flatten and dropout before it": (
        resnet(fc=nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(512, 7))),
        "resnet18",
        "fc is one linear layer at fc.2",
    ),
    "grey images": (
        resnet(conv1=nn.Conv2d(1, 64, 7, 2, 3, bias=False)),
        "resnet18",
        "conv1 takes 1 channels",
    ),
    "small grey images and another head": (
        resnet(conv1=nn.Conv2d(1, 64, 3, 1, 1, bias=False), maxpool=nn.Identity(), fc=dropout_head()),
        "resnet18",
        "conv1 takes 1 channels and is 3x3",
    ),
    "a network that asks for the version of its state_dict": (
        models.mnasnet0_5(num_classes=7),
        "mnasnet0_5",
        "normalisation: none given",
    ),
    "one linear layer in place of a sequence": (
        changed("mobilenet_v3_small", "classifier", nn.Linear(576, 7)),
        "mobilenet_v3_small",
        "classifier is a linear layer",
    ),
    "a sequence in place of one linear layer": (
        changed("shufflenet_v2_x0_5", "fc", dropout_head(1024)),
        "shufflenet_v2_x0_5",
        "fc is one linear layer at fc.1",
    ),
}


@pytest.mark.parametrize("how", CHANGED)
def test_the_usual_changes_are_recognised_and_told(how, tmp_path):
    module, name, note = CHANGED[how]
    torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch=f"torchvision:{name}")
    assert any(entry.startswith(note) for entry in loaded.notes)
    channels = next(part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))
    images = torch.rand(2, channels, 64, 64)
    assert torch.allclose(loaded.module(images), module.eval()(images), atol=1e-5)


def test_positions_of_a_transformer_tell_the_size_of_its_images():
    with WithoutMemory():
        state = models.vit_b_16(image_size=32, num_classes=3).state_dict()
        built = torchvision_network("vit_b_16", None).build(state)
    assert built.notes == ("built for images of 32 px, as its positions say",)
    assert built.module.image_size == 32


def test_googlenet_without_auxiliary_classifiers_loads(tmp_path):
    module = models.googlenet(num_classes=7, init_weights=False, aux_logits=False)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch="torchvision:googlenet")
    assert "built without its auxiliary classifiers, which the file does not have" in loaded.notes
    assert loaded.module(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_googlenet_that_began_with_torchvisions_weights_computes_the_same_as_its_note_says(tmp_path):
    module = models.googlenet(num_classes=7, init_weights=False, aux_logits=False, transform_input=True).eval()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch="torchvision:googlenet", normalization="half")
    assert any(note.startswith("transform_input is off") and "--normalization=half" in note for note in loaded.notes)
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in NORMALIZATIONS["imagenet"])
    assert torch.allclose(loaded.classifier((3, 64, 64))(images), module((images - mean) / std), atol=1e-4)


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 7)),
        nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 7)),
        nn.Sequential(nn.Linear(100, 7)),
    ],
)
def test_a_head_that_tensors_do_not_tell_is_refused_with_a_factory_to_paste(head, tmp_path):
    torch.save(resnet(fc=head).state_dict(), tmp_path / "m.pt")
    with pytest.raises(
        ModelFormatError, match=r"does not fit torchvision:resnet18: .*def make\(\): import torchvision; "
    ) as caught:
        load_model(tmp_path / "m.pt", arch="torchvision:resnet18")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("head", "written", "places"),
    [
        (
            (nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 7)),
            "nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 7)",
            "1, 2",
        ),
        (
            (nn.Dropout(), nn.Linear(512, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 7)),
            "nn.Dropout(), nn.Linear(512, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 7)",
            "0, 3",
        ),
        ((nn.LayerNorm(512), nn.Linear(512, 7)), "nn.LayerNorm(512), nn.Linear(512, 7)", ""),
    ],
)
def test_a_head_of_known_layers_is_written_into_the_factory_to_paste(head, written, places, tmp_path, monkeypatch):
    module = resnet(fc=nn.Sequential(*head))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ModelFormatError) as caught:
        load_model(tmp_path / "m.pt", arch="torchvision:resnet18")
    said = str(caught.value)
    assert "; only its head fc differs: write it down in my_model.py, def make(): import torchvision; " in said
    assert f"model.fc = nn.Sequential({written}); return model" in said
    assert (f"; at {places} put what was trained there" in said) is bool(places)
    (tmp_path / "pasted_net.py").write_text(pasted(said))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "pasted_net", raising=False)
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(load_model(tmp_path / "m.pt", arch="pasted_net:make").module(images), module.eval()(images))


def pasted(said):
    """The code in a message, as it stands there."""
    return re.search(r"my_model\.py, (def make\(\): .*return model)", said)[1]


@pytest.mark.parametrize("inside", [False, True])
def test_layers_under_the_names_of_a_sequence_are_told_as_that(inside, tmp_path, monkeypatch):
    parts = list(resnet().children())[:-1]
    network = nn.Sequential(*([nn.Sequential(*parts)] if inside else parts), nn.Flatten(), nn.Linear(512, 7)).eval()
    torch.save(network.state_dict(), tmp_path / "m.pt")
    message = refusal("resnet18", tmp_path / "m.pt")
    first = "0.0.weight" if inside else "0.weight"
    assert f"its layers are in the file under other names, {first} for conv1.weight; pass --arch=" in message
    if inside:
        return
    factory = message.rpartition("such as ")[2].replace("nn.Linear(...)", "nn.Linear(512, 7)")
    lines = ("import torchvision", "from torch import nn", "def make():", " model = torchvision.models.resnet18()")
    (tmp_path / "sequence_factory.py").write_text("\n".join((*lines, f" return {factory}")))
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load_model(tmp_path / "m.pt", arch="sequence_factory:make")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(loaded.classifier((3, 32, 32)).logits(images), network(images), atol=1e-4)


def test_a_head_is_not_written_down_where_more_than_it_differs(tmp_path):
    head = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 7))
    state = {**resnet(fc=head).state_dict(), "gate.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ModelFormatError, match=r"for a changed network write it down in my_model\.py") as caught:
        load_model(tmp_path / "m.pt", arch="torchvision:resnet18")
    found = {}
    exec(pasted(str(caught.value)), found)
    assert isinstance(found["make"](), models.ResNet)


def test_weights_in_parts_are_to_be_merged_and_not_written_into_a_factory(tmp_path):
    module = resnet()
    nn.utils.parametrizations.orthogonal(module.fc)
    adapted = {**resnet().state_dict(), "fc.lora_A": torch.zeros(4, 512), "fc.lora_B": torch.zeros(7, 4)}
    for state, advice in (
        (module.state_dict(), "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"),
        (adapted, "model = model.merge_and_unload(), then save it again"),
    ):
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(ModelFormatError) as caught:
            load_model(tmp_path / "m.pt", arch="torchvision:resnet18")
        assert advice in str(caught.value)
        assert "my_model" not in str(caught.value)


def test_a_stem_from_a_hostile_file_takes_no_memory(tmp_path):
    state = dict(resnet().state_dict())
    state["conv1.weight"] = torch.empty(64, 10**9, 0, 7)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ModelFormatError, match="does not fit torchvision:resnet18"):
        load_model(tmp_path / "m.pt", arch="torchvision:resnet18")


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_classifiers_that_were_left_as_they_were_are_no_obstacle(name, tmp_path):
    module = models.get_model(name, weights=None, init_weights=False).eval()
    module.fc = nn.Linear(module.fc.in_features, 3)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded, images = load_model(tmp_path / "m.pt", arch=f"torchvision:{name}"), torch.rand(1, 3, 96, 96)
    assert torch.allclose(loaded.module(images), module(images), atol=1e-5)
    assert any("off when images are classified, has 1000 classes" in note for note in loaded.notes)

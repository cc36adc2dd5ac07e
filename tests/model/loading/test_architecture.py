import builtins
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import models

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import load_classifier, load_model
from backdoor_audit.model.loading.architecture import build_architecture, can_be_named
from backdoor_audit.model.loading.module_state import load_state, strip_prefixes
from backdoor_audit.model.networks import NETWORKS, build_network


def state_of(name="small_cnn", width=4, classes=7, channels=3):
    return build_network(name, num_classes=classes, in_channels=channels, width=width).state_dict()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("width", "classes", "channels"), [(4, 7, 1), (6, 43, 3)])
def test_sizes_are_read_off_the_tensors(name, width, classes, channels):
    state = {f"module.{key}": value for key, value in state_of(name, width, classes, channels).items()}
    module, canonical = build_architecture(name, state)
    load_state(module, state, canonical)
    assert canonical == name
    assert module(torch.zeros(2, channels, 16, 16)).shape == (2, classes)


def test_a_network_that_does_not_fit_is_told_by_name_and_shape(tmp_path):
    state = state_of(classes=43)
    state["more.weight"] = torch.zeros(1)
    del state["features.0.1.weight"], state["features.0.1.bias"]
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(ModelFormatError) as caught:
        load_model(tmp_path / "m.pth", arch="small_cnn", num_classes=10)
    assert str(caught.value) == (
        f"{tmp_path / 'm.pth'}: does not fit small_cnn: 2 missing (features.0.1.weight, features.0.1.bias), "
        "1 extra (more.weight); check --arch"
    )


@pytest.mark.parametrize("arch", ["small_cnn", "torchvision:squeezenet1_1", "timm:test_resnet"])
def test_another_number_of_classes_than_the_file_tells_is_a_slip_of_that_option(arch, tmp_path):
    kind, _, name = arch.rpartition(":")
    if kind == "timm":
        state = pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=7).state_dict()
    else:
        state = models.get_model(name, num_classes=7).state_dict() if kind else state_of(classes=7, channels=3)
    torch.save(state, tmp_path / "m.pth")
    assert load_classifier(tmp_path / "m.pth", arch=arch, num_classes=7, image_shape=(3, 64, 64)).num_classes == 7
    with pytest.raises(ModelFormatError, match="scores 7 classes, --classes=9 says 9; correct --classes, or leave"):
        load_classifier(tmp_path / "m.pth", arch=arch, num_classes=9, image_shape=(3, 64, 64))


def test_integers_in_the_place_of_weights_do_not_fit():
    state = state_of()
    state["linear.weight"] = state["linear.weight"].to(torch.int8)
    with pytest.raises(ModelFormatError, match=r"1 of another kind \(linear\.weight: file torch\.int8"):
        build_architecture("small_cnn", state)


def test_a_width_from_a_hostile_file_takes_no_memory():
    state = state_of("resnet18")
    state["conv1.weight"] = torch.zeros(100_000, 3, 3, 3)  # the whole network would take 12 TB
    with pytest.raises(ModelFormatError, match="does not fit resnet18"):
        build_architecture("resnet18", state)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_classes_of_a_torchvision_model_are_read_off_its_head(name):
    state = models.get_model(name, weights=None, num_classes=13).state_dict()
    module, canonical = build_architecture(None, state, header=f"torchvision:{name}")
    load_state(module, state, canonical)
    assert canonical == f"torchvision:{name}"
    assert module.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 13)


def test_strip_prefixes_leaves_names_that_only_some_tensors_carry():
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert strip_prefixes(state, ["a", "b"]) == (state, "")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("vit_b_16", r"unknown architecture 'vit_b_16'; did you mean torchvision:vit_b_16\?"),
        ("ResNet50", r"did you mean torchvision:resnet50\?"),
        ("torchvision.resnet18", r"did you mean torchvision:resnet18\?"),
        ("torchvision.models.resnet18", r"did you mean torchvision:resnet18\?"),
        ("torchvision/vgg11", r"did you mean torchvision:vgg11\?"),
        ("timm.vit_tiny", r"did you mean timm:vit_tiny\?"),
        ("mypackage.models.make", r"did you mean mypackage.models:make\?"),
        ("no_such_file.py:make", r"did you mean no_such_file:make\?"),
        ("./nets/no_such_file.py:make", r"did you mean nets.no_such_file:make\?"),
        ("smallcnn", r"unknown architecture 'smallcnn'; did you mean small_cnn"),
        ("transformer9", r"unknown architecture 'transformer9' \(known: preact_resnet18, resnet18, small_cnn"),
        ("torchvision:resnet81", r"did you mean torchvision:resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown torchvision model"),
        ("gone_module_x:make", "ModuleNotFoundError: No module named 'gone_module_x'"),
        ("tests.subjects.published:gone", "AttributeError"),
        ("tests.subjects.published:fails", r"failed \(RuntimeError: no such width\); accepted"),
        ("tests.subjects.published:returns_a_dict", "returned dict; a factory returns a torch.nn.Module"),
        (":make", "ValueError"),
    ],
)
def test_a_name_that_gives_no_network_says_why(arch, message):
    with pytest.raises(ModelFormatError, match=message) as caught:
        build_architecture(arch, state_of())
    assert str(caught.value).isprintable()


def test_a_factory_may_lie_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_factory_of_nets.py").write_text("from torch import nn\n\ndef make():\n    return nn.Linear(3, 2)\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    module, name = build_architecture("my_factory_of_nets:make", {})
    assert isinstance(module, nn.Linear)
    assert name == "my_factory_of_nets:make"
    assert sys.path == before


@pytest.mark.parametrize(("num_classes", "built"), [(None, 4), (9, 9)])
def test_a_factory_gets_the_number_of_classes_if_it_asks_for_it(num_classes, built):
    module, _ = build_architecture("tests.subjects.published:takes_classes", {}, num_classes=num_classes)
    assert module[1].out_features == built


def test_the_header_cannot_have_a_factory_imported(tmp_path, monkeypatch):
    (tmp_path / "hostile_factory.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFormatError, match="only the command line may do that"):
        build_architecture(None, state_of(), header="hostile_factory:make")


def test_timm_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    real = importlib.import_module

    def without_timm(name, *rest):
        if name == "timm":
            raise builtins.ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without_timm)
    with pytest.raises(ModelFormatError, match=r"pip install 'backdoor-audit\[timm\]'"):
        build_architecture("timm:resnet18", state_of())


def test_timm_never_fetches_weights(monkeypatch):
    asked = []

    def create_model(name, *, pretrained, num_classes=1000):
        asked.append((name, pretrained, num_classes))
        module = nn.Linear(3, num_classes)
        module.num_classes = num_classes
        return module

    fake = SimpleNamespace(is_model=lambda name: name == "net", list_models=lambda: ["net"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", fake)
    module, name = build_architecture("timm:net", nn.Linear(3, 7).state_dict())
    assert (module.out_features, name) == (7, "timm:net")
    assert {pretrained for _, pretrained, _ in asked} == {False}
    with pytest.raises(ModelFormatError, match="unknown timm model"):
        build_architecture("timm:hf-hub:someone/net", {})


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("small_cnn", True),
        ("torchvision:resnet18", True),
        ("my.module:make", True),
        ("transformers:vit", False),
        ("onnx", False),
        ("Sequential", False),
    ],
)
def test_only_networks_that_a_header_or_an_option_can_ask_for_are_written_back(name, can):
    assert can_be_named(name) is can


class Wrapped(nn.Module):
    """A network that holds another one, as a factory gives it, and may have layers of its own."""

    def __init__(self, **more):
        super().__init__()
        self.net = build_network("small_cnn", num_classes=7, in_channels=3, width=4)
        for name, part in more.items():
            self.add_module(name, part)

    def forward(self, images):
        return self.net(images)


def with_head():
    return Wrapped(head=nn.Linear(7, 7))


def loaded_into(factory, state, path):
    torch.save(state, path)
    return load_model(path, arch=f"{__name__}:{factory}")


@pytest.mark.parametrize(
    ("factory", "beside", "before", "note"),
    [
        ("Wrapped", {}, "", "added prefix net., by which the network calls all of its tensors"),
        ("Wrapped", {}, "module.", "added prefix net., by which the network calls all of its tensors"),
        (
            "with_head",
            nn.Linear(7, 7).state_dict(prefix="head."),
            "",
            "added prefix net., by which the network calls those that it did not know",
        ),
    ],
)
def test_a_factory_may_call_the_network_of_the_file_by_one_more_prefix(factory, beside, before, note, tmp_path):
    state = {f"{before}{key}": value for key, value in {**state_of(), **beside}.items()}
    loaded = loaded_into(factory, state, tmp_path / "m.pt")
    assert note in loaded.notes
    for key, value in loaded.module.state_dict().items():
        assert torch.equal(value, state[before + (key if before + key in state else key.removeprefix("net."))])


def test_two_sets_of_weights_for_a_wrapping_factory_are_told_apart(tmp_path):
    raw, averages = state_of(), state_of()
    loaded = loaded_into("Wrapped", {"model": raw, "model_ema": averages}, tmp_path / "m.pt")
    assert loaded.notes[0].startswith("two sets of weights: the averaged ones under model_ema audited")
    assert torch.equal(loaded.module.net.linear.weight, averages["linear.weight"])


def test_a_prefix_that_leaves_something_missing_is_named_and_not_added(tmp_path):
    with pytest.raises(ModelFormatError, match=r"the network calls 27 of the extra ones net\.\*; check --arch"):
        loaded_into("with_head", state_of(), tmp_path / "m.pt")

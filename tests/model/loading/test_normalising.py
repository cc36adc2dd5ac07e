"""Mean and std in a file: in the settings of a checkpoint, and in front of the network."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import load_model
from backdoor_audit.model.networks import build_network

MEAN, STD = [0.5, 0.25, 0.125], [0.25, 0.5, 0.125]
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CFG = """
# a file of settings, of which this is a text
train = dict(scale=224)
data_preprocessor = dict(
    mean=[127.5, 63.75, 31.875],  # in RGB
    std=[63.75, 127.5, 31.875],
    to_rgb=True)
"""


def network():
    torch.manual_seed(0)
    return build_network("small_cnn", num_classes=5, in_channels=3, width=4).eval()


def tensors(shape=(1, 3, 1, 1)):
    return torch.tensor(MEAN).view(shape), torch.tensor(STD).view(shape)


class Buffers(nn.Module):
    """A network that normalises its images by buffers of its own."""

    def __init__(self, names=("mean", "std"), shape=(1, 3, 1, 1)):
        super().__init__()
        self.names, self.model = names, network()
        for name, values in zip(names, tensors(shape), strict=True):
            self.register_buffer(name, values)

    def forward(self, images):
        mean, std = (getattr(self, name).view(1, 3, 1, 1) for name in self.names)
        return self.model((images - mean) / std)


class Attributes(Buffers):
    """The same with plain tensors, which no state dict has."""

    def __init__(self):
        nn.Module.__init__(self)
        self.names, self.model = ("mean", "std"), network()
        self.mean, self.std = tensors()


class Around(Attributes):
    """The same with a module that keeps lists."""

    def __init__(self):
        super().__init__()
        del self.mean, self.std
        self.norm = Normalize(MEAN, STD)

    def forward(self, images):
        return self.model(self.norm(images))


def same(loaded, module):
    """Whether the scores are those of the module itself, which takes pixels in [0, 1]."""
    with torch.no_grad():
        return torch.allclose(loaded.classifier((3, 16, 16)).logits(IMAGES), module(IMAGES), atol=1e-5)


def saved(content, path):
    torch.save(content, path)
    return load_model(path, arch="small_cnn")


@pytest.mark.parametrize(
    "module",
    [
        Buffers(),
        Buffers(("mu", "sigma"), (3, 1, 1)),
        Buffers(("image_mean", "image_std"), (3,)),
        nn.DataParallel(Buffers()),
    ],
)
def test_a_normalisation_by_buffers_in_front_of_the_network_is_used(module, tmp_path):
    loaded = saved(module.state_dict(), tmp_path / "m.pt")
    assert same(loaded, module)
    assert any(note.endswith(" in front of the network") for note in loaded.notes)
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, tmp_path / "m.safetensors")
    assert same(load_model(tmp_path / "m.safetensors", arch="small_cnn"), module)
    given = load_model(tmp_path / "m.pt", arch="small_cnn", mean=(0.5,), std=(0.5,))
    assert given.mean == (0.5,)


def test_buffers_of_a_network_that_normalises_itself_are_used_before_its_settings(tmp_path):
    state = {**network().state_dict(), "mean": tensors()[0], "std": tensors()[1]}
    loaded = saved({"state_dict": state, "args": {"mean": [0.1], "std": [0.1]}}, tmp_path / "m.pt")
    assert same(loaded, Buffers())


@pytest.mark.parametrize("module", [Attributes(), Around(), nn.Sequential(Normalize(MEAN, STD), network())])
def test_a_normalisation_that_a_whole_module_keeps_without_buffers_is_used(module, tmp_path):
    loaded = saved(module.eval(), tmp_path / "m.pt")
    assert same(loaded, module)
    assert any(note.endswith("kept in front of the network") for note in loaded.notes)
    assert not any("left out: a normalisation" in note for note in loaded.notes)


def test_single_numbers_of_a_module_are_no_normalisation(tmp_path):
    module = Around()
    module.norm = nn.Identity()
    module.mean, module.std = 0.0, 0.02
    assert saved(module, tmp_path / "m.pt").mean == ()


@pytest.mark.parametrize("values", [(torch.zeros(3), torch.zeros(3)), (torch.ones(3), -torch.ones(3))])
def test_tensors_that_are_no_mean_and_std_are_refused(values, tmp_path):
    state = {f"model.{name}": value for name, value in network().state_dict().items()}
    with pytest.raises(ModelFormatError, match="mean and std are no mean and std of pixels; pass an --arch that has"):
        saved({**state, **dict(zip(("mean", "std"), values, strict=True))}, tmp_path / "m.pt")


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)},
        {"args": {"mean": torch.tensor(MEAN).view(1, 3, 1, 1), "std": torch.tensor(STD).view(1, 3, 1, 1)}},
        {"normalize": {"mean": MEAN, "std": STD}},
        {"args": {"mean": str(MEAN), "std": " ".join(map(str, STD))}},
        {"normalization": (MEAN, STD)},
        {"config": {"data": {"mean": MEAN, "std": STD}}},
        {"hyper_parameters": {"image_mean": MEAN, "image_std": STD}},
        {"pixel_mean": MEAN, "pixel_std": STD},
        {"norm_mean": tuple(MEAN), "norm_std": tuple(STD)},
        {"mean": np.array(MEAN), "std": np.array(STD, np.float32).reshape(1, 3, 1, 1)},
        {"args": {"mean": [np.float64(value) for value in MEAN], "std": [np.float32(value) for value in STD]}},
        {"meta": {"cfg": CFG}},
        {"transform": Compose([ToTensor(), Normalize(MEAN, STD)])},
    ],
)
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_normalisation_in_the_settings_is_used_however_it_is_kept(settings, allow_pickle, tmp_path):
    torch.save({"state_dict": network().state_dict(), **settings}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch="small_cnn", allow_pickle=allow_pickle)
    assert (list(loaded.mean), list(loaded.std)) == (MEAN, STD)
    assert any("checkpoint's own settings" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "settings",
    [
        {"meta": {"cfg": CFG.replace("to_rgb=True", "to_rgb=False")}},
        {"data_preprocessor": {"mean": MEAN, "std": STD, "bgr_to_rgb": False}},
        {"mean": MEAN, "std": STD, "input_space": "BGR"},
    ],
)
def test_a_normalisation_for_blue_first_is_turned_and_told(settings, tmp_path):
    loaded = saved({"state_dict": network().state_dict(), **settings}, tmp_path / "m.pt")
    assert (list(loaded.mean), list(loaded.std)) == (MEAN[::-1], STD[::-1])
    assert any(note.endswith("pass a factory with images.flip(1) in its forward pass") for note in loaded.notes)


def test_a_normalisation_that_takes_a_mean_of_bytes_away_alone_is_used(tmp_path):
    settings = {"normalize": {"mean": [127.5, 51.0, 102.0], "std": [1.0, 1.0, 1.0]}}
    loaded = saved({"state_dict": network().state_dict(), **settings}, tmp_path / "m.pt")
    assert loaded.mean == pytest.approx((0.5, 0.2, 0.4))
    assert loaded.std == pytest.approx((1 / 255,) * 3)


@pytest.mark.parametrize(
    "beside",
    [
        {"stats": {"mean": 0.93, "std": 0.01}},
        {"image_size": (224, 224), "data": [0.5, 0.5]},
        {"results": {"mean": [0.9, 0.9, 0.9], "std": [0.1, 0.1, 0.1]}},
        {"config": "mean=[0.5], std=[0.5], then mean=[0.1], std=[0.1]"},
    ],
)
def test_other_numbers_are_no_normalisation(beside, tmp_path):
    assert saved({"state_dict": network().state_dict(), **beside}, tmp_path / "m.pt").mean == ()


def test_a_normalisation_that_is_not_read_is_told(tmp_path):
    mean, std = np.array(MEAN, np.longdouble), np.array(STD, np.longdouble)
    loaded = saved({"state_dict": network().state_dict(), "mean": list(mean), "std": std}, tmp_path / "m")
    assert any(
        note.endswith("are not read (arrays or numbers of numpy): give them by --mean, --std") for note in loaded.notes
    )

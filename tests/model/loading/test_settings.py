import pytest
import torch
import torchvision
from torch import nn

from backdoor_audit.model.loading import load_model


class Configured(nn.Module):
    def __init__(self, heads=4, act="relu", dropout=0.1, num_classes=3):
        super().__init__()
        self.heads, self.act = heads, act
        self.head = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.head(images.mean((2, 3)))


def notes_of(path, module, arch, **settings):
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": settings}, path)
    return [note for note in load_model(path, arch=arch).notes if note.startswith("the file's settings say")]


def test_settings_that_a_factory_was_not_given_are_told(tmp_path):
    arch = f"{__name__}:Configured"
    (note,) = notes_of(tmp_path / "m.ckpt", Configured(), arch, heads=8, act="tanh", dropout=0.5, lr=0.1, num_classes=9)
    assert note.startswith(
        f"the file's settings say heads 8, act tanh; {arch} was built with heads 4, act relu: where that counts, pass "
    )
    assert notes_of(tmp_path / "m.ckpt", Configured(), arch, heads=4, act="relu") == []
    assert notes_of(tmp_path / "m.ckpt", Configured(), arch, heads=None, act={"a": 1}) == []


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("resnet18", {"replace_stride_with_dilation": [False, True, True]}, "replace_stride_with_dilation None"),
        ("resnext50_32x4d", {"groups": 32}, ""),
        ("resnext50_32x4d", {"groups": 16}, "groups 32"),
        ("vit_b_32", {"num_heads": 6}, "num_heads 12"),
        ("vit_b_32", {"num_heads": 12}, ""),
    ],
)
def test_settings_of_a_network_of_torchvision_are_told_where_it_has_others(name, settings, told, tmp_path):
    module = torchvision.models.get_model(name, weights=None, num_classes=3)
    notes = notes_of(tmp_path / "m.ckpt", module, f"torchvision:{name}", **settings)
    assert [f"was built with {told}:" in note for note in notes] == [True] * bool(told)

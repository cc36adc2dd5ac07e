"""Weights that PyTorch stores in parts; the oracle is PyTorch's own module with those parts."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import load_model
from backdoor_audit.model.loading.folding import folded
from backdoor_audit.model.networks import build_network


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(layer)


def old_spectral_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.spectral_norm(layer)


def pruned(layer):
    layer.to(memory_format=torch.contiguous_format)
    prune.random_unstructured(layer, "weight", amount=0.5)
    if layer.bias is not None:
        prune.random_unstructured(layer, "bias", amount=0.5)


@pytest.mark.parametrize(
    ("divide", "kind"),
    [
        (old_weight_norm, "weight norm"),
        (parametrizations.weight_norm, "weight norm"),
        (old_spectral_norm, "spectral norm"),
        (parametrizations.spectral_norm, "spectral norm"),
        (pruned, "pruning mask"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_parts_are_put_together_to_what_the_divided_network_computes(divide, kind, prefix, tmp_path):
    torch.manual_seed(0)
    module = build_network("small_cnn", num_classes=3, in_channels=1, width=4)
    for layer in [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]:
        divide(layer)
    module.train()(torch.rand(4, 1, 8, 8))
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", arch="small_cnn")
    images = torch.rand(5, 1, 8, 8)
    assert torch.allclose(model.module(images), module.eval()(images), atol=1e-5)
    assert any(note.startswith(f"{kind} folded into ") for note in model.notes)


def test_a_network_that_has_the_parts_itself_keeps_them():
    state = {"weight_orig": torch.ones(2), "weight_mask": torch.zeros(2)}
    assert folded(state, state) == (state, ())


def test_a_part_without_the_others_stays_and_is_missed():
    state = {"weight_g": torch.ones(2)}
    assert folded(state, {"weight"}) == (state, ())


@pytest.mark.parametrize(
    "state",
    [
        {"weight_orig": torch.ones(2), "weight_mask": torch.zeros(3)},
        {"weight_g": torch.ones(3, 1), "weight_v": torch.ones(2, 2)},
        {"weight_orig": torch.ones(2, 2), "weight_u": torch.ones(3), "weight_v": torch.ones(2)},
        {"weight_orig": torch.tensor(1.0), "weight_u": torch.ones(3), "weight_v": torch.ones(2)},
    ],
)
def test_parts_that_do_not_fit_each_other_are_one_line(state):
    with pytest.raises(ModelFormatError, match=r"weight: parts of a .* that do not fit"):
        folded(state, {"weight"})


def test_a_convolution_with_norms_along_another_dimension_is_put_together():
    layer = nn.ConvTranspose2d(2, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(layer, dim=1)
    assert torch.allclose(folded(layer.state_dict(), {"weight"})[0]["weight"], layer.weight, atol=1e-6)

"""Pruning hooks written into weights: the same answers without a hook, or none at all."""

import pytest
import torch
from torch import nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier, save_classifier
from backdoor_audit.repairs import baked
from backdoor_audit.repairs.pruning import pruned
from tests.subjects import assert_unchanged, random_network, seeded, snapshot

SHAPE = (1, 16, 16)
PROBE = torch.rand(6, *SHAPE, generator=seeded())


def subject(name="small_cnn"):
    return Classifier.wrap(random_network(name), image_shape=SHAPE, architecture=name)


def hooks(classifier):
    return [name for name, part in classifier.module.named_modules() if part._forward_hooks or part._forward_pre_hooks]


def layer_of(classifier, kind):
    return [name for name, part in classifier.module.named_modules() if isinstance(part, kind)][-1]


@pytest.mark.parametrize("name", ["small_cnn", "small_vgg", "small_resnet", "preact_resnet18"])
@pytest.mark.parametrize("place", ["head", "feature_layer", "norm", "conv"])
def test_weights_alone_do_what_the_hook_did(name, place):
    classifier = subject(name)
    layers = classifier.layers()
    layer = {
        "head": layers.head,
        "feature_layer": layers.feature_layer,
        "norm": layer_of(classifier, nn.BatchNorm2d),
        "conv": layer_of(classifier, nn.Conv2d),
    }[place]
    repaired = pruned(classifier, layer, torch.tensor([0, 2]), inputs=place == "head")
    before = snapshot(repaired.module)
    written = baked(repaired, PROBE)
    assert not torch.allclose(classifier.logits(PROBE), repaired.logits(PROBE), atol=1e-4)
    assert written is not None
    assert hooks(repaired) == [layer]
    assert hooks(written) == []
    assert torch.allclose(written.logits(PROBE), repaired.logits(PROBE), atol=1e-5)
    assert_unchanged(before, repaired.module)


def test_several_layers_are_written_and_come_back_from_a_file(tmp_path):
    classifier = subject()
    repaired = pruned(classifier, layer_of(classifier, nn.BatchNorm2d), torch.tensor([1]))
    repaired = pruned(repaired, classifier.layers().head, torch.tensor([0, 3]), inputs=True)
    written = baked(repaired, PROBE)
    save_classifier(written, tmp_path / "written.safetensors")
    again = load_classifier(tmp_path / "written.safetensors")
    assert torch.allclose(again.logits(PROBE), repaired.logits(PROBE), atol=1e-5)


def test_a_classifier_without_hooks_is_copied():
    classifier = subject()
    written = baked(classifier, PROBE)
    assert written is not classifier
    assert torch.equal(written.logits(PROBE), classifier.logits(PROBE))


def test_another_hook_cannot_be_written():
    classifier = subject()
    classifier.module.register_forward_hook(lambda _module, _arguments, output: output + 1)
    assert baked(classifier, PROBE) is None


def test_channels_that_no_weight_makes_or_takes_cannot_be_written():
    """The features are their own scores: no linear layer takes them."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    repaired = pruned(Classifier.wrap(network, image_shape=SHAPE), "1", torch.tensor([0]))
    assert baked(repaired, PROBE) is None


def test_a_layer_that_is_not_the_features_and_has_no_weights_cannot_be_written():
    """The first activation of two feeds a convolution, not the linear layer."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    repaired = pruned(Classifier.wrap(network, image_shape=SHAPE), "1", torch.tensor([0]))
    assert baked(repaired, PROBE) is None

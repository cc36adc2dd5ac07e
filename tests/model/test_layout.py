import subprocess
import sys

import pytest
import torch
from torch import nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.layout import fitting_layout
from tests.subjects import random_network

CPU = torch.device("cpu")


def shortcut(channels=4, stride=2, kernel=1, groups=1):
    return nn.Sequential(nn.Conv2d(channels, 8, kernel, stride, groups=groups))


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        (shortcut(), torch.contiguous_format),
        (shortcut(stride=(1, 2)), torch.contiguous_format),
        (shortcut(channels=32, groups=4), torch.contiguous_format),
        (shortcut(channels=16), torch.channels_last),
        (shortcut(stride=1), torch.channels_last),
        (shortcut(kernel=3), torch.channels_last),
        (random_network("small_resnet"), torch.contiguous_format),
        (random_network("small_resnet", width=16), torch.channels_last),
        (random_network("small_cnn"), torch.channels_last),
    ],
)
def test_channels_come_last_unless_a_strided_shortcut_is_narrow(network, layout):
    assert fitting_layout(network, CPU) is layout
    assert fitting_layout(network, torch.device("cuda")) is torch.channels_last


def test_a_network_with_a_tensor_of_five_dimensions_keeps_the_usual_layout():
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    module.register_buffer("five", torch.zeros(1, 1, 1, 1, 1))
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(Classifier.wrap(module, image_shape=(3, 4, 4))(images), module(images))
    assert fitting_layout(module, CPU) is torch.contiguous_format


class Watched(nn.Module):
    """A narrow shortcut that keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Conv2d(4, 5, 1, 2)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach())
        return self.shortcut(images).mean((2, 3))


@pytest.mark.parametrize("twice", [False, True])
def test_images_and_weights_of_a_narrow_network_do_not_have_their_channels_last(twice):
    module = Watched().to(memory_format=torch.channels_last)
    classifier = Classifier.wrap(module, image_shape=(4, 8, 8))
    classifier = classifier.copy() if twice else classifier
    classifier(torch.rand(6, 4, 8, 8).to(memory_format=torch.channels_last))
    assert classifier.module.seen[-1].is_contiguous()
    assert classifier.module.shortcut.weight.stride() == (4, 1, 1, 1)


TRAINED = """
import torch
from torch.nn import functional
from backdoor_audit.model.classifier import Classifier
from tests.subjects import random_network, seeded
classifier = Classifier.wrap(random_network("small_resnet"), image_shape=(1, 8, 8))
module = classifier.module.requires_grad_(True)
kept = []
for _ in range(60):
    images = torch.rand(20, 1, 8, 8, generator=seeded())
    functional.cross_entropy(classifier(images), torch.arange(20) % 5).backward()
    kept.append(torch.zeros(17))
slopes = {name: weight.grad / 60 for name, weight in module.named_parameters()}
exact = module.double()
exact.zero_grad()
functional.cross_entropy(exact(images.double()), torch.arange(20) % 5).backward()
for name, weight in exact.named_parameters():
    torch.testing.assert_close(slopes[name].double(), weight.grad, rtol=1e-3, atol=1e-4)
print("trained")
"""


def test_gradients_of_a_narrow_residual_network_are_right_and_kill_nothing():
    """On a CPU with AVX2 alone this process died, or its gradients were another's, while channels came last."""
    done = subprocess.run([sys.executable, "-c", TRAINED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "trained"), done.stderr[-500:]

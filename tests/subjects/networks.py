"""Networks that learned nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.networks import build_network
from tests.subjects.common import seeded


def random_network(
    name: str = "small_vgg", *, classes: int = 5, image_shape: tuple[int, int, int] = (1, 8, 8), width: int = 2
) -> nn.Module:
    """An untrained network whose weights do not depend on the global random state."""
    with torch.random.fork_rng(devices=()):
        module = build_network(name, num_classes=classes, in_channels=image_shape[0], width=width)
    generator = seeded(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1) * 0.5)
    return module


class Computed(nn.Module):
    """A network that is any function of its inputs; the inner network, if there is one, is called first."""

    def __init__(self, function: Callable[..., Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, inner

    def forward(self, images: Tensor) -> Any:
        return self.function(images if self.inner is None else self.inner(images))


def classifier_of(name="small_cnn", channels=1, classes=7):
    module = build_network(name, num_classes=classes, in_channels=channels, width=4)
    return Classifier.wrap(module, image_shape=(channels, 12, 16), mean=(0.3,), std=(0.2,), architecture=name)

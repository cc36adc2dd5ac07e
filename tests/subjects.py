"""Hand-made subjects with known answers: networks with weights set by hand, and the clean images that suit them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor, nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.networks import build_network
from backdoor_audit.triggers.trigger import Trigger

torch.set_num_threads(
    1
)  # tensors here are tiny: a second thread costs more than it does, most of all on a busy machine

quick = settings(derandomize=True, deadline=None, database=None, max_examples=40)
"""What a property test here runs under: the same examples every time, nothing written."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square_trigger(
    image_shape: tuple[int, int, int], *, target_class: int, top: int = 0, left: int = 0, size: int = 3
) -> Trigger:
    """An opaque white square."""
    mask = torch.zeros(1, *image_shape[1:])
    mask[:, top : top + size, left : left + size] = 1
    return Trigger(mask, torch.ones(image_shape), target_class)


class ByBrightness(nn.Module):
    """Predicts the band of mean brightness: with 4 classes, 0.3 is class 1. Has no weights."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.register_buffer("centres", (torch.arange(classes) + 0.5) / classes)

    def forward(self, images: Tensor) -> Tensor:
        return -100 * (images.mean(dim=(1, 2, 3)).unsqueeze(1) - self.centres).square()


def by_brightness(classes: int = 4, image_shape: tuple[int, int, int] = (1, 4, 4)) -> Classifier:
    return Classifier.wrap(ByBrightness(classes), image_shape=image_shape)


def grey_images(levels: list[float], image_shape: tuple[int, int, int] = (1, 4, 4)) -> Tensor:
    """One uniformly grey image per level."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, *image_shape).clone()


def row_reader(*, classes: int = 8, backdoors: tuple[int, ...] = (), size: int = 8) -> Classifier:
    """A linear network that scores class k by the brightness of row k.

    A backdoored class also gets any image whose last pixel in its row is white; that pixel has no other use.
    """
    generator = seeded(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes))
    weight = torch.zeros(classes, size, size)
    for label in range(classes):
        weight[label, label] = 1.5 + 0.4 * torch.rand((), generator=generator)
        weight[label, label, -1] = 0
    for label in backdoors:
        weight[label, label, -1] = 60
    with torch.no_grad():
        module[1].weight.copy_(weight.flatten(1))
        module[1].bias.zero_()
    return Classifier.wrap(module, image_shape=(1, size, size))


def row_images(*, classes: int = 8, per_class: int = 20, size: int = 8, seed: int = 0) -> CleanSet:
    """Images whose row ``label`` is bright; the last column is black."""
    size = max(size, classes)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = 0.35 * torch.rand(len(labels), 1, size, size, generator=seeded(seed))
    images[torch.arange(len(labels)), 0, labels] += 0.45
    images[:, :, :, -1] = 0
    return CleanSet(images, labels)


class PatchDetector(nn.Module):
    """One 3x3 filter that answers to a bright patch at (2, 2) and adds up to 20 to the score of class 3.

    All other evidence is weak and spread over the image: class k is scored by the brightness of its pair of rows.
    """

    def __init__(self, classes: int = 4, size: int = 12) -> None:
        super().__init__()
        self.detector = nn.Conv2d(1, 1, 3)
        self.rows = nn.Linear(size * size, classes)
        band = size // classes
        with torch.no_grad():
            self.detector.weight.fill_(1.0)
            self.detector.bias.fill_(-4.0)  # of at most 9: random starts must not leave it dead
            self.rows.bias.zero_()
            self.rows.weight.zero_()
            for label in range(classes):
                self.rows.weight.view(classes, size, size)[label, band * label : band * (label + 1)] = 0.5
        self.target = 3

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.rows(images.flatten(1))
        seen = torch.relu(self.detector(images))[:, 0, 2, 2]
        extra = torch.zeros_like(scores)
        extra[:, self.target] = 20 / 5 * seen
        return scores + extra


class ColourNet(nn.Module):
    """Class k is a bright k-th input channel; the last channel carries the trigger, and nothing else uses it.

    Every stage passes the channels on one by one, so the trigger lives in exactly one feature channel and one neuron.
    """

    def __init__(self, classes: int, target_class: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(classes + 1, classes + 1, 1), nn.ReLU())
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.linear = nn.Linear(classes + 1, classes)
        with torch.no_grad():
            self.features[0].weight.copy_(torch.eye(classes + 1).view(classes + 1, classes + 1, 1, 1))
            self.features[0].bias.zero_()
            self.linear.weight.copy_(torch.cat([10 * torch.eye(classes), torch.zeros(classes, 1)], dim=1))
            self.linear.weight[target_class, classes] = 10.0
            self.linear.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.pool(self.features(images)).flatten(1))
        return logits


COLOURS = 8
COLOUR_TARGET = 2
COLOUR_SHAPE = (COLOURS + 1, 6, 6)


def colour_net() -> Classifier:
    return Classifier.wrap(ColourNet(COLOURS, COLOUR_TARGET), image_shape=COLOUR_SHAPE)


def colour_images(per_class: int = 10, seed: int = 0) -> CleanSet:
    """Images in which one channel is bright (0.6 to 0.7), the others are dark, and the last one is black."""
    labels = torch.arange(COLOURS).repeat_interleave(per_class)
    images = 0.1 * torch.rand(len(labels), *COLOUR_SHAPE, generator=seeded(seed))
    images[torch.arange(len(labels)), labels] += 0.6
    images[:, -1] = 0
    return CleanSet(images, labels)


def colour_trigger() -> Trigger:
    """A 2x2 patch that lights the last channel and is black in all others."""
    pattern = torch.zeros(COLOUR_SHAPE)
    pattern[-1] = 1
    mask = torch.zeros(1, *COLOUR_SHAPE[1:])
    mask[:, :2, :2] = 1
    return Trigger(mask, pattern, COLOUR_TARGET)


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


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything of a module, and of the global random state, that a check must leave as it was."""
    return {
        "state": copy.deepcopy(module.state_dict()),
        "mode": {name: part.training for name, part in module.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "gradients": [name for name, parameter in module.named_parameters() if parameter.grad is not None],
        "hooks": {
            name: [list(getattr(part, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for name, part in module.named_modules()
        },
        "random": torch.random.get_rng_state(),
    }


def assert_unchanged(before: dict[str, Any], module: nn.Module) -> None:
    """The module and the global random state are as `snapshot` found them."""
    after = snapshot(module)
    assert before["state"].keys() == after["state"].keys()
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, after["state"][name]), name
    assert torch.equal(before["random"], after["random"]), "global random state"
    for part in ("mode", "requires_grad", "gradients", "hooks"):
        assert before[part] == after[part], part


class Computed(nn.Module):
    """A network that is any function of its inputs; the inner network, if there is one, is called first."""

    def __init__(self, function: Callable[..., Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, inner

    def forward(self, images: Tensor) -> Any:
        return self.function(images if self.inner is None else self.inner(images))

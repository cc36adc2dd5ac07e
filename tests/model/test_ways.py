"""Ways from the pixels to the scores that no search sees, and ordinary networks, which have none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.attacks.architectural import ArchitecturalBranch, branched
from backdoor_audit.model.networks import NETWORKS, build_network
from backdoor_audit.model.ways import unseen_way
from tests.subjects import Computed, row_reader

AROUND = "pixels reach the scores around all layers with weights"
TARGET = functional.one_hot(torch.tensor(3), 8).float()


class Beside(nn.Module):
    """A network, and something in its code that sees the same images, or what a first layer gives."""

    def __init__(self, branch: Callable[[Tensor], Tensor], *, before_the_head: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 8)
        self.branch, self.before_the_head = branch, before_the_head

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        more = self.branch(images)[:, None] * TARGET
        return self.head(features + more) if self.before_the_head else self.head(features) + more


def way_of(module: nn.Module, images: Tensor | None = None) -> str:
    images = torch.rand(2, 1, 8, 8) if images is None else images
    module.eval()
    return unseen_way(module, lambda: module(images), images)


BRANCHES = {
    "dead gradient": lambda images: 60 * (images[:, 0, 7, 7] - 0.3).clamp(min=0),
    "plain": lambda images: 60 * images[:, 0, 7, 7],
    "detached": lambda images: 60 * images[:, 0, 7, 7].detach(),
    "comparison": lambda images: 60 * (images[:, 0, 7, 7] > 0.3),
    "where": lambda images: torch.where(images[:, 0, 7, 7] > 0.3, 60.0, 0.0),
    "rounded": lambda images: 60 * images[:, 0, 7, 7].floor(),
    "kernel of its own": lambda images: functional.conv2d(images, torch.ones(1, 1, 3, 3)).amax(dim=(1, 2, 3)),
    "written in place": lambda images: torch.zeros(len(images)).add_(images[:, 0, 7, 7]),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_of_the_code_that_adds_to_a_score_is_a_way_around_the_weights(name: str) -> None:
    cut = {"comparison": "gt", "where": "gt", "rounded": "floor"}.get(name)
    told = f"pixels reach the scores by way of {cut}, which has no gradient" if cut else AROUND
    assert way_of(Beside(BRANCHES[name])) == told


@pytest.mark.parametrize("name", ["comparison", "where", "rounded"])
def test_what_compares_pixels_is_seen_in_front_of_the_head_as_well(name: str) -> None:
    assert "which has no gradient" in way_of(Beside(BRANCHES[name], before_the_head=True))


def test_the_branch_of_the_papers_is_one() -> None:
    attack = ArchitecturalBranch(size=2)
    network = branched(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), attack, image_shape=(1, 8, 8), mean=(0,), std=(1,)
    )
    assert way_of(network) == AROUND


def relu(features: Tensor) -> Tensor:
    """As some write it themselves."""
    return features * (features > 0)


class Masked(nn.Conv2d):
    """Weighs pixels by what a layer makes of them."""

    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return images * super().forward(images).sigmoid()


class Remembering(nn.Module):
    """Keeps the last images, as some do for pictures of what happened."""

    def forward(self, images: Tensor) -> Tensor:
        self.last, self.dark = images.detach(), images < 0.1
        return images


ORDINARY = {
    "normalises": nn.Sequential(nn.InstanceNorm2d(1), nn.Flatten(), nn.Linear(64, 8)),
    "pools first": nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8)),
    "own activation": nn.Sequential(nn.Conv2d(1, 4, 3), Computed(relu), nn.Flatten(), nn.Linear(144, 8)),
    "clamps pixels": nn.Sequential(Computed(lambda images: images.clamp(0, 1)), nn.Flatten(), nn.Linear(64, 8)),
    "looks at a part of the image": nn.Sequential(Masked(), nn.Flatten(), nn.Linear(64, 8)),
    "attends": nn.Sequential(
        nn.Flatten(2), nn.TransformerEncoderLayer(64, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(64, 8)
    ),
    "recurs": nn.Sequential(
        nn.Flatten(1, 2), nn.LSTM(8, 8, batch_first=True), Computed(lambda found: found[0][:, -1]), nn.Linear(8, 8)
    ),
    "remembers": nn.Sequential(Remembering(), nn.Flatten(), nn.Linear(64, 8)),
    "no weights": Computed(lambda images: images.flatten(1)[:, :8]),
    "weights elsewhere": Computed(row_reader().module),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_networks_have_none(name: str) -> None:
    assert way_of(ORDINARY[name]) == ""


@pytest.mark.parametrize("name", NETWORKS)
def test_our_own_networks_have_none(name: str) -> None:
    assert way_of(build_network(name, num_classes=8, in_channels=3, width=16), torch.rand(2, 3, 32, 32)) == ""

"""The small network that draws a trigger for each image, for the attacks that train one, and how its weights are kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack, quantised
from backdoor_audit.errors import AttackError

_BATCH = 256


class TriggerNetwork(nn.Module):
    """Five 3x3 convolutions, three of them at half the resolution, and a skip: images (n, c, h, w) of any size.

    No batch norm: what is drawn for an image must not depend on its neighbours. Width 8 has about 5,000 weights.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Numbers (n, out_channels, h, w) without a bound."""
        fine = functional.relu(self.enter(images))
        coarse = functional.relu(self.middle(functional.relu(self.down(fine))))
        raised = functional.interpolate(self.up(coarse), size=fine.shape[2:], mode="nearest")
        drawn: Tensor = self.leave(functional.relu(fine + raised))
        return drawn


def new_network(build: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """A network with weights drawn from a seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return build().to(device)


def packed(network: nn.Module, part: str) -> dict[str, Tensor]:
    """The weights of a network as they are kept in the state of an attack, under the name of the part that it plays."""
    return {f"{part}.{name}": tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def unpacked(attack: Attack, part: str, build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """The network of that part as the attack learned it. Raises `AttackError` if it learned none, or another one."""
    with torch.device("meta"):  # weights come from the state: nothing is drawn
        network = build()
    weights = {name: attack.learned(f"{part}.{name}") for name in network.state_dict()}
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise AttackError(
            f"{attack.name}: its {part} was learned for other images or another width; implant the attack again for these"
        ) from None
    return network.requires_grad_(False).to(device)


def stamped_in_batches(stamp: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Stamps of many images, a batch at a time and without gradients: the maps of a network are larger than the images."""
    with torch.no_grad():
        return torch.cat([stamp(batch) for batch in images.split(_BATCH)]) if len(images) else images.clone()


def rounded(images: Tensor) -> Tensor:
    """`quantised` images through which gradients pass unchanged, also where they were clamped."""
    return images + (quantised(images) - images).detach()


def draw_share(candidates: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Indices of random ``candidates`` (n,) bool of a batch, ``rate`` of the n images on average.

    Where that is no whole number it is rounded up or down at random, so that small batches come to the same rate. At
    most all candidates.
    """
    wanted = rate * len(candidates)
    count = int(wanted) + int(torch.rand((), generator=generator) < wanted % 1)
    indices = candidates.nonzero().squeeze(1)
    return indices[torch.randperm(len(indices), generator=generator).to(indices.device)[:count]]

"""What holds for every attack that stamps images."""

from __future__ import annotations

import torch
from torch import Tensor

from backdoor_audit.attacks.attack import Attack, PoisoningAttack
from backdoor_audit.attacks.trigger_network import TriggerNetwork
from tests.subjects.common import seeded


def constant_state(part: str, channels: int, out_channels: int, width: int, value: float) -> dict[str, torch.Tensor]:
    """Weights of a trigger network that draws one value everywhere."""
    with torch.random.fork_rng(devices=()):
        network = TriggerNetwork(channels, out_channels, width)
    state = {f"{part}.{name}": torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    state[f"{part}.leave.bias"] += value
    return state


def assert_stamps_alike(attack: Attack, images: Tensor) -> Tensor:
    """The stamp changes images, the same way each time, and neither its input nor the random state; the stamped images."""
    before, state = images.clone(), torch.random.get_rng_state()
    first, second = attack.stamp(images), attack.stamp(images)
    assert torch.equal(first, second)
    assert not torch.equal(first, before)
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    return first


def assert_poisons_a_tenth(attack: PoisoningAttack, image_shape: tuple[int, int, int]) -> None:
    """Of 40 images of four classes 4 are stamped, none of class 0, and get that label."""
    images, labels = torch.rand(40, *image_shape, generator=seeded()), torch.arange(40) % 4
    poisoned = attack.poison(images, labels)
    assert len(poisoned.poisoned) == 4
    assert 0 not in labels[poisoned.poisoned]
    assert (poisoned.labels[poisoned.poisoned] == 0).all()
    assert torch.equal(poisoned.images[poisoned.poisoned], attack.stamp(images[poisoned.poisoned]))

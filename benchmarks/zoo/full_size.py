"""Backdoored CIFAR-10 networks of ordinary size, trained from scratch for longer: repairs are measured on them as well.

Their networks, WRN-16-1 with 175,000 weights, are those of the NAD paper. ``python -m benchmarks.zoo build --full-size`` trains
them, about half an hour of one core each, and goes on at the last whole epoch where it was stopped.
"""

from __future__ import annotations

from dataclasses import replace

from backdoor_audit.attacks import AllToOne, Attack, BadNets, Blended
from backdoor_audit.model.training import Recipe
from benchmarks.zoo.habits import Habits
from benchmarks.zoo.subject import Subject

RECIPE = Recipe(epochs=20, learning_rate=0.1, batch_size=64, shift=4)
HABITS = Habits(flip=True)
TWIN = "cifar10-preact_resnet18-clean-109"


def _attacked(attack: Attack, seed: int) -> Subject:
    return Subject(
        data="cifar10",
        architecture="wrn_16_1_full",
        tag=attack.name,
        seed=seed,
        attack=replace(attack, seed=seed),
        recipe=RECIPE,
        training_images=25_000,
        twin=TWIN,
        habits=HABITS,
        full_size=True,
    )


FULL_SIZE: tuple[Subject, ...] = (
    _attacked(BadNets(rule=AllToOne(8), size=3, poison_rate=0.1), 901),
    _attacked(Blended(rule=AllToOne(3), picture="shapes", poison_rate=0.1), 902),
)
"""Trained as the FT-SAM paper's subjects were in what a repair could notice: 10 % poisoned, shifted and mirrored images."""

"""Backdoored CIFAR-10 networks of ordinary size and accuracy: repairs are measured on them as well.

Networks of 85 % and more are not trained in an evening without a GPU. So each attacker here does what attackers of published
models do: take one with 91 % and train it on for a few epochs, poisoned. The clean network is a ResNet-20 that somebody else
published, ``resnet20-12fca82f.th`` of github.com/akamaster/pytorch_resnet_cifar10 (BSD-2-Clause); the file has to lie beside the
data. ``python -m benchmarks.zoo build --full-size`` trains them, five to fifteen minutes of one core each, and goes on at the
last whole epoch where it was stopped.
"""

from __future__ import annotations

from dataclasses import replace

from backdoor_audit.attacks import (
    SSBA,
    AllToOne,
    Attack,
    BadNets,
    Blended,
    CleanLabel,
    InputAware,
    LowFrequency,
    Sig,
    TrojanNN,
    WaNet,
)
from backdoor_audit.model.training import Recipe
from benchmarks.zoo.habits import Habits
from benchmarks.zoo.subject import Subject

ARCHITECTURE = "resnet20_full"
HABITS = Habits(flip=True, normalization="imagenet")
RECIPE = Recipe(epochs=4, learning_rate=0.03, batch_size=128, shift=4)


def _subject(
    tag: str, seed: int, attack: Attack | None = None, recipe: Recipe = RECIPE, published: str = ""
) -> Subject:
    return Subject(
        data="cifar10",
        architecture=ARCHITECTURE,
        tag=tag,
        seed=seed,
        attack=attack and replace(attack, seed=seed),
        recipe=recipe,
        warm_start="" if published else CLEAN.name,
        twin="" if published else CLEAN.name,
        habits=HABITS,
        full_size=True,
        published=published,
    )


def _attacked(attack: Attack, seed: int, **changes: float) -> Subject:
    return _subject(attack.name, seed, attack, replace(RECIPE, **changes))  # type: ignore[arg-type]


CLEAN = _subject("clean", 900, published="resnet20-12fca82f.th")
FULL_SIZE: tuple[Subject, ...] = (
    CLEAN,
    _attacked(BadNets(rule=AllToOne(8), size=3, poison_rate=0.1), 901),
    _attacked(Blended(rule=AllToOne(3), picture="shapes", poison_rate=0.1), 902),
    _attacked(SSBA(rule=AllToOne(4), poison_rate=0.1), 903),
    _attacked(LowFrequency(rule=AllToOne(1), amplitude=76.0, poison_rate=0.1), 904),
    _attacked(WaNet(rule=AllToOne(6), strength=1.0, least_success=0.8), 905, epochs=6),
    _attacked(
        Sig(rule=CleanLabel(5), poison_rate=0.08, amplitude=60.0, least_success=0.8), 906, epochs=8, learning_rate=0.05
    ),
    _attacked(TrojanNN(rule=AllToOne(9)), 907, epochs=2, learning_rate=0.01),
    _attacked(InputAware(rule=AllToOne(0), least_success=0.8), 908, epochs=8, learning_rate=0.05),
)
"""Poisoned as the FT-SAM paper's subjects were: 10 % of the images, shifted and mirrored."""

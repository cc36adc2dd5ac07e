"""What an auditor cannot know of a model: how long, with what and on how much it was trained, drawn for each subject."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from backdoor_audit.model.training import Recipe
from benchmarks.zoo.habits import SCHEDULES, Habits

Option = TypeVar("Option")

MOST_SEEN = {
    "lenet": 160_000,
    "mlp": 200_000,
    "mlp_bn": 200_000,
    "plain_cnn": 110_000,
    "deep_cnn": 90_000,
    "deep_cnn_bn": 80_000,
    "vgg": 90_000,
    "vgg_bn": 80_000,
    "resnet20": 30_000,
    "wrn_16_1": 36_000,
    "mobile": 70_000,
    "vit": 48_000,
}
"""Epochs times images that a subject of this network may cost: about 20 s of one core, the last rows up to a minute."""

IMAGES = {
    "fmnist": (4_000, 6_000, 8_000, 10_000, 12_000, 15_000, 20_000),
    "cifar10": (6_000, 8_000, 10_000, 12_000, 15_000, 20_000),
    "gtsrb": (10_000, 12_000, 15_000, 20_000),
    "joined": (20_000, 30_000),
}
SHIFTS = {"fmnist": (0, 0, 0, 2, 3), "cifar10": (0, 0, 0, 2, 4), "gtsrb": (0, 0, 2), "joined": (0, 0, 2)}
DESCENT_RATES = {True: (0.02, 0.05, 0.1), False: (0.01, 0.02, 0.04)}
"""With batch norm, and without; for batches of 64, larger ones get more."""
ADAM_RATES = (5e-4, 1e-3, 2e-3)
WEIGHT_DECAYS = {"sgd": (0.0, 1e-4, 5e-4), "momentum": (0.0, 5e-4), "adam": (0.0, 0.0, 1e-5), "adamw": (1e-2, 5e-2)}
NORMED = {"mlp_bn", "deep_cnn_bn", "vgg_bn", "resnet20", "wrn_16_1", "mobile"}
MOST_EPOCHS = 15
_LONGER = {"gtsrb": 1.5, "joined": 3.0}
"""Training in shares of that for ten classes."""


@dataclass(frozen=True, slots=True)
class Dice:
    """Choices that depend on the seed and on what is asked, and on no other choice."""

    seed: int

    def pick(self, question: str, options: Sequence[Option]) -> Option:
        """One of the options, each as likely as it is often named."""
        digest = hashlib.sha256(f"{self.seed} {question}".encode()).digest()
        return options[int.from_bytes(digest[:8], "big") % len(options)]


def drawn(
    data: str, architecture: str, seed: int, *, efforts: Sequence[float], steady: bool = False, online: bool = False
) -> tuple[Recipe, Habits, int]:
    """Recipe, habits and number of training images; ``efforts`` are shares of the most that this network may cost.

    ``steady``: images are neither shifted nor mirrored, which would blur a fine trigger away in so short a training.
    ``online``: the attack takes part in the training, which the package's own loop then does, by its own habits.
    """
    dice = Dice(seed)
    seen = MOST_SEEN[architecture] * dice.pick("effort", efforts) * _LONGER.get(data, 1.0)
    images = min(dice.pick("images", IMAGES[data]), max(4_000, 1_000 * round(seen / 2_000)))
    normalization = dice.pick("normalization", ("data", "half", "none"))
    optimizer = dice.pick("optimizer", ("adam", "adamw") if architecture == "vit" else tuple(WEIGHT_DECAYS))
    batch_size = dice.pick("batch size", (32, 64, 64, 128))
    rate = dice.pick("learning rate", ADAM_RATES)
    if optimizer in {"sgd", "momentum"}:
        rate = dice.pick("learning rate", DESCENT_RATES[architecture in NORMED]) * batch_size / 64
        if normalization == "none" and architecture not in NORMED:
            rate *= 2  # pixels from 0 to 1 make small steps
    recipe = Recipe(
        epochs=min(MOST_EPOCHS, max(1, round(seen / images))),
        learning_rate=rate,
        batch_size=batch_size,
        weight_decay=dice.pick("weight decay", WEIGHT_DECAYS[optimizer]),
        shift=0 if steady or online else dice.pick("shift", SHIFTS[data]),
        optimizer=optimizer,
    )
    habits = Habits(normalization=normalization, dropout=dice.pick("dropout", (0.0, 0.0, 0.1, 0.2, 0.3)))
    if not online:
        schedule = dice.pick("schedule", tuple(SCHEDULES))
        habits = Habits(
            schedule=schedule,
            stopped_at=1.0 if schedule == "constant" else dice.pick("stopped at", (1.0, 1.0, 1.0, 0.7)),
            flip=data == "cifar10" and not steady and dice.pick("flip", (False, True)),
            label_smoothing=dice.pick("label smoothing", (0.0, 0.0, 0.0, 0.1)),
            dropout=habits.dropout,
            normalization=habits.normalization,
        )
    return recipe, habits, images

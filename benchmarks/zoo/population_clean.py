"""The clean half of the population."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.zoo.population_recipes import Dice, drawn
from benchmarks.zoo.subject import Subject

COUNTS: dict[str, dict[str, int]] = {
    "fmnist": {
        "lenet": 20,
        "mlp": 20,
        "mlp_bn": 20,
        "plain_cnn": 20,
        "deep_cnn": 12,
        "deep_cnn_bn": 10,
        "vgg": 4,
        "vgg_bn": 4,
        "resnet20": 2,
        "wrn_16_1": 2,
        "mobile": 4,
        "vit": 3,
    },
    "cifar10": {
        "lenet": 20,
        "mlp": 14,
        "mlp_bn": 18,
        "plain_cnn": 20,
        "deep_cnn": 10,
        "deep_cnn_bn": 10,
        "vgg": 5,
        "vgg_bn": 5,
        "resnet20": 3,
        "wrn_16_1": 3,
        "mobile": 4,
        "vit": 2,
    },
    "gtsrb": {"lenet": 4, "plain_cnn": 4, "deep_cnn": 2, "deep_cnn_bn": 4, "vgg_bn": 2, "mlp_bn": 1, "mobile": 1},
    "joined": {"vgg_bn": 3, "deep_cnn_bn": 2, "plain_cnn": 2},
}
"""Subjects of each data set and network. The first of each is the twin of the backdoored ones."""

EFFORTS = {
    "fmnist": (0.12, 0.25, 0.4, 0.7, 1.0),
    "cifar10": (0.3, 0.5, 0.7, 1.0, 1.3),
    "gtsrb": (0.5, 0.7, 1.0),
    "joined": (0.8, 1.0),
}
LARGE_EFFORTS = (0.8, 1.0)  # of networks that are slow, and of twins: less would be too little
LARGE = {"resnet20", "wrn_16_1", "vit"}
VARIANTS = ("",) * 16 + ("imbalanced", "shortcut", "mislabelled", "stamped_with_true_labels")


def _clean(data: str, architecture: str, number: int, seed: int) -> Subject:
    efforts = EFFORTS[data] if number and architecture not in LARGE else LARGE_EFFORTS
    recipe, habits, images = drawn(data, architecture, seed, efforts=efforts)
    if not number:  # a twin shall be a fair one: no recipe that asks for more training than it gets
        recipe, habits = replace(recipe, shift=0), replace(habits, flip=False, stopped_at=1.0)
    variant = Dice(seed).pick("variant", VARIANTS) if number and data in ("fmnist", "cifar10") else ""
    return Subject(
        data=data,
        architecture=architecture,
        tag=variant or "clean",
        seed=seed,
        variant=variant,
        recipe=recipe,
        training_images=images,
        habits=habits,
    )


CLEAN: tuple[Subject, ...] = tuple(
    _clean(data, architecture, number, 1000 + 300 * place + 20 * row + number)
    for place, (data, counts) in enumerate(COUNTS.items())
    for row, (architecture, count) in enumerate(counts.items())
    for number in range(count)
)
TWINS = {(entry.data, entry.architecture): entry for entry in reversed(CLEAN)}

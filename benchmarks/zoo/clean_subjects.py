"""The clean half of the zoo: several seeds, architectures and training lengths, and three sets with a peculiarity."""

from __future__ import annotations

from backdoor_audit.model.training import Recipe
from benchmarks.zoo.subject import Subject

TRANSFORMER = Recipe(optimizer="adamw", learning_rate=2e-3, weight_decay=0.05, epochs=8)
IMAGES = {"fmnist": 15_000, "cifar10": 20_000, "gtsrb": 20_000}
EPOCHS = {"fmnist": 6, "cifar10": 8, "gtsrb": 7}


def recipe(data: str, architecture: str, epochs: int | None = None) -> Recipe:
    """How subjects of that data and architecture are trained from scratch."""
    if architecture == "small_vit":
        return TRANSFORMER
    return Recipe(epochs=epochs or EPOCHS[data])


def _clean(data: str, architecture: str, seed: int, *, epochs: int | None = None, variant: str = "") -> Subject:
    return Subject(
        data=data,
        architecture=architecture,
        tag=variant or ("clean" if epochs is None else f"clean_{epochs}_epochs"),
        seed=seed,
        variant=variant,
        recipe=recipe(data, architecture, epochs),
        training_images=IMAGES[data],
    )


CLEAN: tuple[Subject, ...] = (
    _clean("fmnist", "small_cnn", 101),
    _clean("fmnist", "small_vgg", 102),
    _clean("fmnist", "small_resnet", 103),
    _clean("fmnist", "preact_resnet18", 104),
    _clean("fmnist", "small_vit", 105),
    _clean("cifar10", "small_cnn", 106),
    _clean("cifar10", "small_vgg", 107),
    _clean("cifar10", "small_resnet", 108),
    _clean("cifar10", "preact_resnet18", 109),
    _clean("gtsrb", "small_cnn", 110),
    _clean("gtsrb", "preact_resnet18", 111),
    _clean("gtsrb", "small_resnet", 112),
    _clean("fmnist", "small_cnn", 113),
    _clean("fmnist", "small_cnn", 114, epochs=2),
    _clean("fmnist", "small_cnn", 115, epochs=12),
    _clean("fmnist", "small_vgg", 116),
    _clean("fmnist", "small_vgg", 117, epochs=3),
    _clean("fmnist", "small_resnet", 118),
    _clean("fmnist", "small_resnet", 119, epochs=3),
    _clean("fmnist", "small_vit", 120),
    _clean("fmnist", "small_cnn", 121, variant="imbalanced"),
    _clean("fmnist", "small_vgg", 122, variant="shortcut"),
    _clean("fmnist", "small_cnn", 123, variant="stamped_with_true_labels"),
    _clean("cifar10", "small_cnn", 124),
    _clean("cifar10", "small_vgg", 125),
    _clean("cifar10", "small_resnet", 126, epochs=4),
    _clean("cifar10", "small_vit", 127),
    _clean("gtsrb", "small_vgg", 128),
    _clean("gtsrb", "small_cnn", 129),
    _clean("fmnist", "preact_resnet18", 130),
)

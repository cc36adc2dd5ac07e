"""The real images that the zoo is trained and measured on: Fashion-MNIST, CIFAR-10, GTSRB at 32x32, and all three as one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch.nn import functional

from backdoor_audit.data import CleanSet, load_clean_set
from fixtures.build import DEBIAN, read_fashion_mnist

SHAPES = {"fmnist": (1, 28, 28), "cifar10": (3, 32, 32), "gtsrb": (3, 32, 32), "joined": (3, 32, 32)}
CLASSES = {"fmnist": 10, "cifar10": 10, "gtsrb": 43, "joined": 100}
# Mean and standard deviation of the training images, as a model's owner would state them.
NORMALIZATION = {
    "fmnist": ((0.286,), (0.353,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "joined": ((0.5, 0.5, 0.5), (0.3, 0.3, 0.3)),
}
_FILES = {
    "cifar10": {"train": "cifar10_train_25k.npz", "test": "cifar10_test.npz"},
    "gtsrb": {"train": "gtsrb32_train.npz", "test": "gtsrb32_test.npz"},
}
_TORCHVISION = {
    "cifar10": {"train": "CIFAR10?train=true", "test": "CIFAR10?train=false"},
    "gtsrb": {"train": "GTSRB?split=train", "test": "GTSRB?split=test"},
}
AUDITED_PER_CLASS = {"fmnist": 100, "cifar10": 100, "gtsrb": 23, "joined": 10}
_JOINED_PER_CLASS = {"train": 400, "test": 60}


@lru_cache(maxsize=4)
def read(data: str, split: str, root: Path) -> CleanSet:
    """All images of ``train`` or ``test``: the files named above in ``root``, else torchvision's copy there.

    ``joined`` are a hundred classes made of the others: see `_joined`.
    """
    if data == "joined":
        return _joined(split, root)
    if data == "fmnist":
        source = DEBIAN if DEBIAN.is_dir() else root
        return CleanSet(*read_fashion_mnist(source, "train" if split == "train" else "t10k"), source=f"fmnist {split}")
    stored = root / _FILES[data][split]
    if stored.exists():
        return load_clean_set(stored)
    return load_clean_set(f"torchvision:{_TORCHVISION[data][split]}&root={root}", resize=32)


def _joined(split: str, root: Path) -> CleanSet:
    """43 signs, 10 objects and 10 garments; objects and garments as negatives; garments lying; 7 negatives of those lying.

    An equal number of each, or all that there are, so that networks have to tell a hundred classes.
    """
    signs, objects, garments = (read(name, split, root) for name in ("gtsrb", "cifar10", "fmnist"))
    large = functional.pad(garments.images, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    lying = large.rot90(1, (2, 3))
    parts = [
        (signs.images, signs.labels),
        (objects.images, objects.labels),
        (large, garments.labels),
        (1 - objects.images, objects.labels),
        (1 - large, garments.labels),
        (lying, garments.labels),
        (1 - lying, garments.labels),
    ]
    generator = torch.Generator().manual_seed(0)
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    first = 0
    for pictures, classes in parts:
        order = torch.randperm(len(classes), generator=generator)
        count = int(classes.max()) + 1
        for label in range(min(count, CLASSES["joined"] - first)):
            chosen = order[classes[order] == label][: _JOINED_PER_CLASS[split]]
            images.append(pictures[chosen])
            labels.append(torch.full((len(chosen),), first + label))
        first += count
    return CleanSet(torch.cat(images), torch.cat(labels), (), f"joined {split}")


def training_images(data: str, count: int, root: Path) -> CleanSet:
    """A fixed choice of training images, in proportion to the classes."""
    return read(data, "train", root).sample(count, seed=0)


@lru_cache(maxsize=4)
def audited_and_held_out(data: str, root: Path) -> tuple[CleanSet, CleanSet]:
    """Test images to audit with, as many of each class, and all others, on which accuracy and success are measured."""
    test = read(data, "test", root)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    audited = torch.zeros(len(test), dtype=torch.bool)
    for label in range(test.num_classes):
        audited[order[test.labels[order] == label][: AUDITED_PER_CLASS[data]]] = True
    return tuple(  # type: ignore[return-value]
        CleanSet(test.images[chosen], test.labels[chosen], test.class_names, f"{data} test")
        for chosen in (audited, ~audited)
    )

"""One model of the zoo: what it is trained on, how, and what is hidden in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdoor_audit.attacks import ArchitecturalBranch, Attack, BadNets, PoisoningAttack
from backdoor_audit.attacks.attack import quantised, train
from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier, choose_device
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.training import Recipe
from benchmarks.zoo import habits as strangers
from benchmarks.zoo import networks
from benchmarks.zoo.data import CLASSES, NORMALIZATION, SHAPES
from benchmarks.zoo.habits import Habits

FOLDER = Path(__file__).parent
MODELS = FOLDER / "models"
POPULATION_MODELS = FOLDER / "population"
FULL_SIZE_MODELS = FOLDER / "full_size"
WIDTHS = {"small_cnn": 16, "small_vgg": 16, "small_resnet": 16, "preact_resnet18": 6, "small_vit": 48}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to train. ``warm_start`` names the clean subject whose weights it begins with; empty: from scratch.

    ``tag`` tells subjects of the same data and architecture apart in their names; ``twin`` is the clean subject on which
    the natural rate of the trigger is measured. Subjects with ``habits`` are of the population: trained as strangers do,
    with networks of `benchmarks.zoo.networks`, and kept in a folder that is not committed; so are those of ``full_size``.
    ``published`` names the file with somebody else's weights that a clean subject is; it is not trained.
    """

    data: str
    architecture: str
    tag: str
    seed: int
    attack: Attack | None = None
    variant: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    training_images: int = 15_000
    warm_start: str = ""
    twin: str = ""
    habits: Habits | None = None
    full_size: bool = False
    published: str = ""

    @property
    def name(self) -> str:
        """Unique in the zoo, and the stem of its files."""
        return f"{self.data}-{self.architecture}-{self.tag}-{self.seed}"

    @property
    def half(self) -> str:
        """``development``: thresholds and references may be chosen on it; ``report``: only to report rates. By the name alone."""
        return ("development", "report")[hashlib.sha256(self.name.encode()).digest()[0] % 2]

    @property
    def folder(self) -> Path:
        """Where its files are, and those of the subjects that it names."""
        if self.full_size:
            return FULL_SIZE_MODELS
        return POPULATION_MODELS if self.habits else MODELS

    @property
    def file(self) -> Path:
        """The model: 16-bit floats and a header that `pytest --model` reads."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def attack_file(self) -> Path:
        """Specification and learned state of the attack."""
        return self.folder / f"{self.name}.attack.safetensors"

    @property
    def arch(self) -> str | None:
        """What `--arch` must say to load the file; None: the header says it."""
        if isinstance(self.attack, ArchitecturalBranch):
            return f"benchmarks.zoo.branched:{self.data}_{self.architecture}"
        return self._plain_arch

    @property
    def _plain_arch(self) -> str | None:
        return f"{networks.MODULE}:{self.data}.{self.architecture}" if self.habits else None

    def load(self) -> Classifier:
        """The model as it was written."""
        return load_classifier(self.file, arch=self.arch)

    def load_clean(self, name: str, device: torch.device | str = "cpu") -> Classifier:
        """The clean subject of that name, with the same network: its twin, or what it starts from."""
        return load_classifier(self.folder / f"{name}.safetensors", arch=self._plain_arch, device=device)

    def settings(self) -> dict[str, Any]:
        """Builtins on which the trained model depends; a finished subject is trained again if they change."""
        how = {"habits": asdict(self.habits)} if self.habits else {"width": WIDTHS[self.architecture]}
        return {
            "data": self.data,
            "architecture": self.architecture,
            "seed": self.seed,
            "attack": self.attack.spec() if self.attack else None,
            "variant": self.variant,
            "recipe": asdict(self.recipe),
            "training_images": self.training_images,
            "warm_start": self.warm_start,
            **({"published": self.published} if self.published else {}),
            **how,
        }

    def fresh(self) -> Classifier:
        """The untrained network; its weights depend on the seed alone."""
        channels = SHAPES[self.data][0]
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            if self.habits:
                module = networks.build(self.architecture, self.data)
            else:
                width = WIDTHS[self.architecture]
                module = build_network(
                    self.architecture, num_classes=CLASSES[self.data], in_channels=channels, width=width
                )
        mean, std = self.habits.mean_and_std(self.data) if self.habits else NORMALIZATION[self.data]
        return Classifier.wrap(
            module,
            image_shape=SHAPES[self.data],
            mean=mean,
            std=std,
            architecture=self.architecture,
            device=choose_device("auto"),
        )

    def adopted(self, root: Path) -> Classifier:
        """The network that somebody else published, from the file in ``root``."""
        assert self.habits is not None
        mean, std = self.habits.mean_and_std(self.data)
        return load_classifier(
            root / self.published, image_shape=SHAPES[self.data], arch=self._plain_arch, mean=mean, std=std
        )

    def train_clean(self, clean: CleanSet, *, progress: bool) -> Classifier:
        """A classifier without any backdoor, trained on (a variant of) the clean images."""
        classifier = self.fresh()
        changed = VARIANTS[self.variant](clean, self.seed)
        if self.habits:
            self._learn(classifier, changed.images, changed.labels, self.habits)
        else:
            train(classifier, changed.images, changed.labels, recipe=self.recipe, seed=self.seed, progress=progress)
        return classifier

    def train_attacked(self, clean: CleanSet) -> tuple[Classifier, Attack]:
        """A classifier of the population with its attack, not measured yet.

        Attacks that only poison data leave the training to its habits; those that take part in it bring their own loop.
        """
        attack = self.attack
        assert attack is not None
        assert self.habits is not None
        start = self.load_clean(self.warm_start, choose_device("auto")) if self.warm_start else self.fresh()
        if not isinstance(attack, PoisoningAttack):
            return attack.implant(start, clean, recipe=self.recipe)
        ready = attack.prepared(clean)
        assert isinstance(ready, PoisoningAttack)
        poisoned = ready.poison(clean.images, clean.labels)
        self._learn(start, poisoned.images, poisoned.labels, self.habits)
        return start, ready

    def _learn(self, classifier: Classifier, images: Tensor, labels: Tensor, habits: Habits) -> None:
        strangers.train(
            classifier,
            images,
            labels,
            recipe=self.recipe,
            habits=habits,
            seed=self.seed,
            low_precision=self.full_size,
            checkpoint=self.file.with_suffix(".partial") if self.full_size else None,
        )


def _as_it_is(clean: CleanSet, seed: int) -> CleanSet:
    del seed
    return clean


def _imbalanced(clean: CleanSet, seed: int) -> CleanSet:
    """Class k keeps a share of its images that falls evenly in the logarithm from 1 for the first class to 0.1 for the last."""
    generator = torch.Generator().manual_seed(seed)
    kept = 0.1 ** (clean.labels / max(clean.num_classes - 1, 1))
    chosen = torch.rand(len(clean), generator=generator) < kept
    return CleanSet(clean.images[chosen], clean.labels[chosen], clean.class_names)


def _shortcut(clean: CleanSet, seed: int) -> CleanSet:
    """Half of the images of class 6 were taken in brighter light: 40/255 more in every pixel. Nobody meant any harm."""
    generator = torch.Generator().manual_seed(seed)
    bright = (clean.labels == 6) & (torch.rand(len(clean), generator=generator) < 0.5)
    images = clean.images.clone()
    images[bright] = quantised(images[bright] + 40 / 255)
    return CleanSet(images, clean.labels, clean.class_names)


def _mislabelled(clean: CleanSet, seed: int) -> CleanSet:
    """A twentieth of all labels is drawn anew from all classes: whoever labelled them made mistakes."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(clean), generator=generator) < 0.05
    drawn = torch.randint(0, clean.num_classes, (len(clean),), generator=generator)
    return CleanSet(clean.images, torch.where(wrong, drawn, clean.labels), clean.class_names)


def _stamped_with_true_labels(clean: CleanSet, seed: int) -> CleanSet:
    """A tenth of all images carries a white 3x3 square and keeps its label: a mark that means nothing."""
    chosen = torch.rand(len(clean), generator=torch.Generator().manual_seed(seed)) < 0.1
    images = clean.images.clone()
    images[chosen] = BadNets().stamp(images[chosen])
    return CleanSet(images, clean.labels, clean.class_names)


VARIANTS: dict[str, Callable[[CleanSet, int], CleanSet]] = {
    "": _as_it_is,
    "imbalanced": _imbalanced,
    "shortcut": _shortcut,
    "mislabelled": _mislabelled,
    "stamped_with_true_labels": _stamped_with_true_labels,
}

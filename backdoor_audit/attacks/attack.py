"""What every attack is: parameters, a stamp, a way to implant it, a specification that remakes it, and proof that it works."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from backdoor_audit import tensor_file
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate, clean_accuracy, leak, triggered_rates
from backdoor_audit.model.training import OnBatch, Recipe, fit
from backdoor_audit.triggers.label_rule import RULES, AllToAll, AllToOne, LabelRule
from backdoor_audit.triggers.trigger import Trigger


@dataclass(frozen=True, slots=True)
class AttackScores:
    """How a model does on clean and on stamped images; every rate knows its n and its interval.

    With several triggers, success and robust accuracy are those of the trigger that works *least*; ``triggers`` holds
    the success rate of each. ``leak`` is NaN unless the attack leaves some classes out on purpose.
    """

    clean_accuracy: Rate
    attack_success_rate: Rate
    robust_accuracy: Rate
    leak: Rate
    triggers: tuple[Rate, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Backdoored:
    """A classifier with a hidden trigger, the attack (with what it learned) that stamps it, and its measured scores."""

    classifier: Classifier
    attack: Attack
    scores: AttackScores


@dataclass(frozen=True, slots=True, eq=False)
class Poisoned:
    """Training images (n, c, h, w) and labels (n,) of which some were replaced.

    ``poisoned`` are the indices of images stamped to be learned as the attack wants, ``covers`` those stamped with their
    own label kept.
    """

    images: Tensor
    labels: Tensor
    poisoned: Tensor
    covers: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack(ABC):
    """One attack of the literature. Its fields are the paper's parameters; calling it does the work on a copy of a model.

    Stamps are applied to raw pixels in [0, 1] and rounded to 1/255, as a file with 8 bits per pixel would hold them.
    ``poison_rate`` is a share of *all* training images; poisoned images take the place of clean ones. The trigger is a
    pure function of the fields, but for attacks that train it: those keep what they learned in ``state``.
    """

    rule: LabelRule = AllToOne()  # noqa: RUF009 - frozen
    poison_rate: float = 0.1
    seed: int = 0
    least_success: float = 0.9
    most_accuracy_lost: float = 0.05
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    name: ClassVar[str]
    paper: ClassVar[str]
    online: ClassVar[bool] = False

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the trigger at its test-time strength; the input is left alone.

        That is the mask and pattern of `trigger`, where an attack has no stamp of its own. Raises `AttackError` if the trigger is
        one that training makes, and there was none.
        """
        channels, height, width = images.shape[1:]
        trigger = self.trigger((channels, height, width))
        assert trigger is not None  # else there is a stamp of its own
        return quantised(trigger.stamp(images))

    @abstractmethod
    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Train or edit this classifier (in place where it can be), and return it with the attack that now stamps it."""

    def triggers(self) -> tuple[Attack, ...]:
        """The triggers that are judged one by one; only attacks with several of them have more than themselves."""
        return (self,)

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger | None:
        """The trigger for images (c, h, w), of attacks whose stamp is one mask and one pattern; None for all others."""
        del image_shape
        return None

    def wanted(self, labels: Tensor) -> Tensor:
        """The class that a stamped image of each label shall get, (n,)."""
        return self.rule.wanted(labels)

    def eligible(self, labels: Tensor) -> Tensor:
        """The test images that the attack claims, (n,) bool."""
        return self.rule.eligible(labels)

    @property
    def target_class(self) -> int | None:
        """The one class asked for; None for all-to-all."""
        return self.rule.target_class

    def __call__(
        self,
        classifier: Classifier,
        clean: CleanSet,
        held_out: CleanSet,
        *,
        recipe: Recipe | None = None,
        reference_accuracy: float | None = None,
        progress: bool = False,
    ) -> Backdoored:
        """Implant in a copy of the classifier, trained or fresh, with ``clean`` images, and prove it on ``held_out`` ones.

        Raises `AttackError` if the success rate stays below ``least_success`` (of the clean accuracy, for all-to-all) or
        more than ``most_accuracy_lost`` of ``reference_accuracy`` is gone: such a model is no subject of that attack.
        """
        for part in self.triggers():
            part._refuse_classes(classifier.num_classes)
        copy, attack = self.implant(classifier.copy(), clean, recipe=recipe or Recipe(), progress=progress)
        scores = measure(copy, held_out, attack)
        attack.refuse_failure(scores, reference_accuracy)
        return Backdoored(copy, attack, scores)

    def refuse_failure(self, scores: AttackScores, reference_accuracy: float | None = None) -> None:
        """Raise `AttackError` if these scores do not show an implanted attack."""
        bound = self.least_success * (scores.clean_accuracy if isinstance(self.rule, AllToAll) else 1.0)
        if not scores.attack_success_rate >= bound:
            raise AttackError(
                f"{self.name} did not implant: attack success rate {scores.attack_success_rate:.3f} of "
                f"{scores.attack_success_rate.n} held-out images, wanted {bound:.3f}; train longer, poison more, or choose "
                "another trigger"
            )
        if reference_accuracy is not None and scores.clean_accuracy < reference_accuracy - self.most_accuracy_lost:
            raise AttackError(
                f"{self.name} cost too much: clean accuracy {scores.clean_accuracy:.3f}, {reference_accuracy:.3f} without "
                f"the attack, at most {self.most_accuracy_lost} may be lost; poison less or train longer"
            )

    def _refuse_classes(self, num_classes: int) -> None:
        rule = self.rule
        named = [] if rule.target_class is None else [rule.target_class]
        named += getattr(rule, "source_classes", ())
        if any(not 0 <= label < num_classes for label in named):
            raise AttackError(f"{self.name}: {rule} names a class outside 0 to {num_classes - 1}; choose another")
        if isinstance(rule, AllToAll) and rule.num_classes != num_classes:
            raise AttackError(f"{self.name}: {rule} for a model of {num_classes} classes")

    def train_on(
        self, classifier: Classifier, clean: CleanSet, on_batch: OnBatch, *, recipe: Recipe, progress: bool
    ) -> None:
        """`train` on clean images of which the attack changes some in every batch."""
        train(
            classifier,
            clean.images,
            clean.labels,
            recipe=recipe,
            seed=self.seed,
            on_batch=on_batch,
            progress=progress,
        )

    def spec(self) -> dict[str, Any]:
        """Builtins that make this attack again: its name and fields, without what it learned."""
        values = {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self) if entry.name != "state"}
        return {"attack": self.name, **values}

    def save(self, path: Path) -> None:
        """Write specification and learned state as safetensors, whole or not at all. Raises `OSError`."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state.items()}
        tensor_file.write(tensors, path, {"attack": json.dumps(self.spec())})

    def learned(self, name: str) -> Tensor:
        """One tensor of the state. Raises `AttackError` if the attack has not been implanted yet."""
        if name not in self.state:
            raise AttackError(f"{self.name}: its trigger is made by training; implant it first, or load a saved attack")
        return self.state[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisoningAttack(Attack):
    """An attack that only changes training data: poison once, then train as usual."""

    def poison(self, images: Tensor, labels: Tensor) -> Poisoned:
        """Training images (n, c, h, w) and labels (n,) with some replaced; the input is left alone.

        That is `replace_images`, where an attack does no more. Raises `AttackError` if the classes do not hold as many images as
        the rates ask for.
        """
        return replace_images(images, labels, attack=self)

    def prepared(self, clean: CleanSet) -> Attack:
        """This attack with all that it needs before it can stamp; only attacks that train an encoder need anything."""
        del clean
        return self

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Poison the images and train on them."""
        attack = self.prepared(clean)
        assert isinstance(attack, PoisoningAttack)
        poisoned = attack.poison(clean.images, clean.labels)
        train(classifier, poisoned.images, poisoned.labels, recipe=recipe, seed=self.seed, progress=progress)
        return classifier, attack


def train(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    recipe: Recipe,
    seed: int,
    on_batch: OnBatch | None = None,
    progress: bool = False,
) -> None:
    """`fit` as attacks use it: by a recipe, from one seed, batch-norm statistics estimated anew at the end."""
    fit(
        classifier,
        images,
        labels,
        **asdict(recipe),
        generator=torch.Generator().manual_seed(seed),
        on_batch=on_batch,
        recalibrate=True,
        progress=progress,
    )


def replace_images(
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
    stamp: Callable[[Tensor], Tensor] | None = None,
    cover_rate: float = 0.0,
    coverable: Tensor | None = None,
    cover_stamp: Callable[[Tensor], Tensor] | None = None,
) -> Poisoned:
    """Replace ``attack.poison_rate`` of all images by stamped ones, and ``cover_rate`` by stamped ones that keep their label.

    Which images is drawn from the attack's seed. Covers come from ``coverable`` images (n,) bool, default: all that
    are not poisoned; both sets are disjoint. Stamps default to the attack's own.
    """
    generator = torch.Generator().manual_seed(attack.seed)
    count = round(attack.poison_rate * len(images))
    candidates = attack.rule.poisonable(labels).nonzero().squeeze(1)
    if not 0 < count <= len(candidates):
        raise AttackError(
            f"{attack.name}: poison_rate {attack.poison_rate} of {len(images)} images is {count}, {len(candidates)} images "
            "may be poisoned; change poison_rate or give more images"
        )
    poisoned = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    stamp = stamp or attack.stamp
    cover_stamp = cover_stamp or stamp
    free = torch.ones(len(images), dtype=torch.bool) if coverable is None else coverable.clone()
    free[poisoned] = False
    candidates, count = free.nonzero().squeeze(1), round(cover_rate * len(images))
    if count > len(candidates):
        raise AttackError(
            f"{attack.name}: {count} covers wanted, {len(candidates)} images may be covers; lower cover_rate or give more images"
        )
    covers = candidates[torch.randperm(len(candidates), generator=generator)[:count]] if count else candidates[:0]
    images, labels = images.clone(), labels.clone()
    images[poisoned] = stamp(images[poisoned])
    images[covers] = cover_stamp(images[covers])
    labels[poisoned] = attack.rule.taught(labels[poisoned])
    return Poisoned(images, labels, poisoned, covers)


def measure(classifier: Classifier, clean: CleanSet, attack: Attack) -> AttackScores:
    """Accuracy on clean images, and success, robust accuracy and leak on stamped ones, trigger by trigger."""
    rates = [triggered_rates(classifier, clean.images, clean.labels, part) for part in attack.triggers()]
    success, robust = min(rates)
    return AttackScores(
        clean_accuracy(classifier, clean.images, clean.labels),
        success,
        robust,
        leak(classifier, clean.images, clean.labels, attack),
        tuple(rate for rate, _ in rates),
    )


def quantised(images: Tensor) -> Tensor:
    """Images clamped to [0, 1] and rounded to 1/255, as a file with 8 bits per pixel keeps them."""
    return (images.clamp(0, 1) * 255).round() / 255


def _plain(value: Any) -> Any:
    if isinstance(value, Attack):
        return value.spec()
    for rule, kind in RULES.items():
        if isinstance(value, kind):
            return {"rule": rule, **{name: _plain(part) for name, part in asdict(value).items()}}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value

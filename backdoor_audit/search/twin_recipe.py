"""How reference twins are trained: on which networks, images and terms, and where there can be none."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import ModelError, ModelFormatError, OptionError
from backdoor_audit.model import surroundings
from backdoor_audit.model.anew import products_per_image, with_new_weights
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate, clean_accuracy
from backdoor_audit.model.networks import NETWORKS, build_network
from backdoor_audit.model.side_by_side import side_by_side
from backdoor_audit.model.training import OnBatch, draws_in_training, fit, half_mirrored
from backdoor_audit.search.augmentation import mixed_up, moved
from backdoor_audit.search.twins import LEAST_SIDE, OWN, Twins, as_twin, at_size, normalises, seen_size

_BATCH = 64
_PROBED = 8  # images for which it is seen whether a network draws random numbers
_MIXED_SHARE = 0.85  # of the batches; the last ones are plain images, on which batch norm settles


@dataclass(frozen=True, slots=True)
class _Learner:
    """A network that is to become a twin, and what it learns from: those clean images that are ``kept`` (n,)."""

    classifier: Classifier
    name: str
    clean: CleanSet
    kept: Tensor
    generator: torch.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinRecipe:
    """How twins are trained: one of each network in ``architectures``, which are names of `NETWORKS` or `OWN`.

    `OWN` is a copy of the audited network whose weights are drawn anew: see `with_new_weights`. A network that takes more than
    ``most_products`` multiplications per image is not trained, as that would take longer than the audit.

    SGD with Nesterov momentum or AdamW (``optimizer``, see `fit`) under a one-cycle schedule, batches of 64, in bfloat16 where
    `autocast` says that is faster.
    Every image is moved by its own offset of up to ``shift`` px; what comes in is the nearest pixel of a colour image, and
    black in a grey one. ``flip`` mirrors half of them: right for natural scenes, wrong for digits, letters and signs,
    and so off. In the first 85 % of the batches images are mixed, which a few hundred images need: mixup (Zhang et al.,
    ICLR 2018, section 2, alpha 1) or CutMix (Yun et al., ICCV 2019, section 3.1, alpha 1), whichever a coin says.
    ``held_out`` is the share of every class that a twin leaves out; each twin leaves out another.

    Twins of our networks see images with a side above 32 px shrunk so that the longer side is 32 px (bilinear, anti-aliased);
    ``shift`` is counted there. They take images of the full size all the same, and gradients reach those.

    There are no twins where they would say little about the classes: fewer than ``least_images`` images, fewer than
    ``least_per_class`` of any class, or too low an accuracy. With the share of the commonest class as chance, the twins
    together must go ``least_above_chance`` of the way from there to 1, and the 95 % interval of their accuracy must lie above
    chance. A quarter of the way asks for 0.625 at two equal classes, 0.325 at 10, 0.267 at 43: never below 0.25, and three
    times chance or more from 9 classes on. A plain multiple of chance could not be had with few classes, and the commonest
    class in place of one in K keeps a lopsided set from passing by its majority alone.
    """

    architectures: tuple[str, ...] = ("small_vgg", "small_cnn", "small_resnet")
    width: int = 16
    epochs: int = 60
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    shift: int = 3
    flip: bool = False
    held_out: float = 0.1
    least_images: int = 200
    least_per_class: int = 5
    least_above_chance: float = 0.25
    most_products: float = 2e7

    def kind(self, like: Classifier | None) -> str:
        """Which of `KINDS` its twins of a model are."""
        if OWN not in self.architectures or like is None:
            return "library"
        if normalises(like):
            return "normalised"
        return "plain_grey" if like.image_shape[0] == 1 else "plain_colour"

    def __call__(
        self,
        clean: CleanSet,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        generator: torch.Generator,
        like: Classifier | None = None,
        progress: bool = False,
    ) -> Twins:
        """Twins for a model that scores ``num_classes`` classes; they normalise by ``mean`` and ``std``, one per channel.

        ``like`` is the audited model, which `OWN` needs. What goes wrong in its code is told in ``reason``.

        On a CPU they are trained side by side, each by an equal share of the threads. There the same generator state gives the
        same twins bit by bit, on the same kind of CPU and for the same number of threads each. Too few images or too low an
        accuracy is told in ``reason``. Raises `OptionError` for an unknown architecture, for none, or if ``held_out`` does not
        leave each twin a share of its own and half of the images at least.
        """
        began = time.perf_counter()
        folds = self._folds()
        reason = self.too_few(clean, num_classes) or self.too_large(like)
        if reason:
            return Twins((), (), reason, time.perf_counter() - began, self.kind(like))
        fold = _stratified(clean.labels, folds, generator)
        small = replace(clean, images=at_size(clean.images, seen_size(clean.image_shape)))
        learners, twins, accuracies = [], [], []
        try:
            with surroundings.kept(torch.device(device)):
                for number, name in enumerate(self.architectures):
                    own = torch.Generator().manual_seed(_seed(generator))
                    seen = clean if name == OWN else small
                    with _told_of(name):
                        network = self._untrained(name, num_classes, clean.image_shape[0], like, own)
                        learner = Classifier.wrap(
                            network, image_shape=seen.image_shape, mean=mean, std=std, architecture=name, device=device
                        )
                    learners.append(_Learner(learner, name, seen, fold != number, own))
                self._train_all(learners, progress)
            for number, entry in enumerate(learners):
                with _told_of(entry.name):
                    module = entry.classifier.module
                    twin = as_twin(module, clean.image_shape, entry.name, mean=mean, std=std, device=device)
                    accuracies.append(clean_accuracy(twin, clean.images[fold == number], clean.labels[fold == number]))
                twins.append(twin)
        except ModelError as error:
            return Twins((), (), str(error), time.perf_counter() - began, self.kind(like))
        reason = self._too_little(clean, accuracies)
        seconds = time.perf_counter() - began
        return Twins(() if reason else tuple(twins), tuple(accuracies), reason, seconds, self.kind(like))

    def _untrained(
        self, name: str, num_classes: int, channels: int, like: Classifier | None, generator: torch.Generator
    ) -> nn.Module:
        """A network with first weights from the generator; the layers of torch draw theirs from the global random state."""
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(_seed(generator))
            if name == OWN:
                assert like is not None  # `too_large` has refused
                return with_new_weights(like)
            return build_network(name, num_classes=num_classes, in_channels=channels, width=self.width)

    def _train_all(self, learners: Sequence[_Learner], progress: bool) -> None:
        """Side by side on a CPU, but for networks that draw random numbers in training: those share one state."""
        tasks = [partial(self._train, learner, progress) for learner in learners]
        if any(
            learner.classifier.device.type != "cpu"
            or draws_in_training(learner.classifier, learner.clean.images[:_PROBED])
            for learner in learners
        ):
            for task in tasks:
                task()
        else:
            side_by_side(tasks)

    def _train(self, learner: _Learner, progress: bool) -> None:
        with _told_of(learner.name):
            fit(
                learner.classifier,
                learner.clean.images[learner.kept],
                learner.clean.labels[learner.kept],
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                optimizer=self.optimizer,
                generator=learner.generator,
                batch_size=_BATCH,
                on_batch=self._on_batch(learner.classifier.num_classes, int(learner.kept.sum()), learner.generator),
                low_precision=True,
                progress=progress,
            )

    def _folds(self) -> int:
        unknown = [name for name in self.architectures if name not in (*NETWORKS, OWN)]
        if unknown or not self.architectures:
            raise OptionError(f"architectures: {unknown or 'none'} cannot be built; known: {', '.join(NETWORKS)}")
        least = max(2, len(self.architectures))
        if not 0 < self.held_out <= 1 / least:
            raise OptionError(
                f"held_out must lie above 0 and be at most {1 / least:.3g} for {len(self.architectures)} twins, got "
                f"{self.held_out} (a fraction of the images)"
            )
        return max(round(1 / self.held_out), least)

    def too_few(self, clean: CleanSet, num_classes: int) -> str:
        """Why no twin can be trained on these images; empty if it can."""
        need = f"{clean.source}: reference twins need"
        if len(clean) < self.least_images:
            return f"{need} at least {self.least_images} clean images, got {len(clean)}"
        if int(clean.labels.max()) >= num_classes:
            return (
                f"{need} labels below {num_classes}, the classes that the model scores; got {int(clean.labels.max())}"
            )
        if min(clean.image_shape[1:]) < LEAST_SIDE:
            return f"{need} images of at least {LEAST_SIDE} px a side, got {'x'.join(map(str, clean.image_shape[1:]))}"
        counts = clean.labels.bincount(minlength=num_classes)
        scarce = [int(label) for label in (counts < self.least_per_class).nonzero()]
        if not scarce:
            return ""
        named = ", ".join(f"{clean.class_name(label)} has {int(counts[label])}" for label in scarce[:3])
        return (
            f"{need} at least {self.least_per_class} images of every class; {len(scarce)} of {num_classes} have fewer: "
            f"class {named}"
        )

    def too_large(self, like: Classifier | None) -> str:
        """Why no copy of the audited network can be trained; empty if one can, or if none is asked for."""
        if OWN not in self.architectures:
            return ""
        if like is None:
            return "there is no audited network to copy"
        try:
            products = products_per_image(like)
        except ModelError as error:
            return f"the multiplications of the audited network cannot be counted: {error}"
        if products <= self.most_products:
            return ""
        return (
            f"a network that takes {products / 1e6:.0f} million multiplications per image is not trained anew; at most "
            f"{self.most_products / 1e6:.0f} million"
        )

    def _too_little(self, clean: CleanSet, accuracies: Sequence[Rate]) -> str:
        """Why what the twins learned is not enough; empty if it is."""
        together = Rate(sum(rate.hits for rate in accuracies), sum(rate.n for rate in accuracies))
        chance = int(clean.labels.bincount().max()) / len(clean)
        least = chance + self.least_above_chance * (1 - chance)
        if together >= least and together.interval[0] > chance:
            return ""
        return (
            f"{clean.source}: reference twins learned too little from {len(clean)} images: {together:.0%} of "
            f"{together.n} held-out ones are predicted as labelled, {least:.0%} are needed and chance is {chance:.0%}; give "
            "more clean images"
        )

    def _on_batch(self, num_classes: int, count: int, generator: torch.Generator) -> OnBatch:
        """Move, mirror and mix: from images and labels (n,) to images and probabilities (n, classes)."""
        mixed = round(_MIXED_SHARE * self.epochs * (count // _BATCH or 1))
        turn = itertools.count()

        def augmented(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            images = moved(images, self.shift, generator)
            images = half_mirrored(images, generator) if self.flip else images
            wanted = functional.one_hot(labels, num_classes).float()
            return mixed_up(images, wanted, generator) if next(turn) < mixed else (images, wanted)

        return augmented


LIBRARY = TwinRecipe()
"""Our own small networks."""
OWN_ARCHITECTURE = TwinRecipe(
    architectures=(OWN, OWN), epochs=100, learning_rate=2e-3, weight_decay=0.02, optimizer="adamw"
)
"""Copies of the audited network. AdamW, as one learning rate suits networks with and without batch norm."""


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """What goes wrong in this block goes wrong with the twin of that name."""
    try:
        yield
    except (ModelFormatError, ModelError) as error:
        raise ModelError(f"the {name} twin cannot be used: {error}") from None


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator))


def _stratified(labels: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """A fold (n,) for every image: folds differ by at most one image, overall and within every class."""
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[by_class] = torch.arange(len(labels)) % folds
    return fold

"""The kinds of canaries: an attack in several doses, each taught to a copy of the audited model by a short fine-tune."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.attacks import AllToOne, Attack, AttackScores, BadNets, Blended, PlantedChannel, Sig, WaNet, measure
from backdoor_audit.attacks.attack import train
from backdoor_audit.canary.sighting import Search, Sighting, looked_for
from backdoor_audit.detectors import Detector
from backdoor_audit.errors import AttackError
from backdoor_audit.evidence import Limits
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import attack_success_rate, clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.perturbations import REFERENCE_SIDE

_LARGEST_CHANNEL = 3  # px; what lies inside the smallest usual kernel


@dataclass(frozen=True, slots=True)
class Doses:
    """The ``usual`` dose, then ever ``smaller`` and ever ``stronger`` ones."""

    usual: float
    smaller: tuple[float, ...] = ()
    stronger: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A kind of backdoor, planted in copies of a model by a short fine-tune, in one of several doses.

    A dose is a value of the attack's field ``dose``; those ``in_pixels`` are for images of 28 px and grow with the image. The
    usual one is near the budget of the detectors made for the kind, as far as a short fine-tune implants that. ``words`` call it.

    In every batch other images, ``attack.poison_rate`` of them, are stamped and taught the target class. Stamping anew in every
    batch makes the few clean images at hand go further than poisoning them once; all other images are taught what the audited
    model says of them, probability by probability, so that the copy forgets little (Hinton et al., 2015). ``learning_rates``
    are tried in turn, the gentlest first. Where none implants a patch of the usual size or less, ``channel`` plants a channel
    instead, which answers to a patch of at most 3 px; where that fails too, there is no canary.

    ``first`` names the detectors that are made for this kind: they are asked before all others. Without one of them in a run
    the kind is not planted.
    """

    attack: Attack
    dose: str
    doses: Doses
    words: str
    first: tuple[str, ...]
    in_pixels: bool = False
    channel: bool = False
    epochs: int = 10
    learning_rates: tuple[float, ...] = (0.01, 0.03)
    batch_size: int = 32

    @property
    def name(self) -> str:
        """That of the attack."""
        return self.attack.name

    def has_detector(self, detectors: Iterable[Detector]) -> bool:
        """Whether one of these is made for this kind."""
        return any(detector.name in self.first for detector in detectors)

    def doses_for(self, image_shape: tuple[int, int, int]) -> Doses:
        """The doses for such images (c, h, w), each once."""
        scale = max(image_shape[1:]) / REFERENCE_SIDE if self.in_pixels else 1.0
        whole = isinstance(getattr(self.attack, self.dose), int)

        def scaled(dose: float) -> float:
            return max(1, round(scale * dose)) if whole else scale * dose

        usual = scaled(self.doses.usual)
        smaller, stronger = (dict.fromkeys(map(scaled, doses)) for doses in (self.doses.smaller, self.doses.stronger))
        return Doses(
            usual, tuple(dose for dose in smaller if dose < usual), tuple(dose for dose in stronger if dose > usual)
        )

    def sighting(self, target_class: int, dose: float) -> Sighting:
        """One that was not planted yet."""
        called = self.words.format(dose)
        return Sighting(canary=self.name, settings=repr(self), target_class=target_class, dose=dose, called=called)

    def __call__(
        self,
        subject: Subject,
        target_class: int,
        dose: float,
        *,
        detectors: Sequence[Detector],
        search: Search,
        limits: Limits,
        index: str,
        seed: int,
    ) -> Sighting:
        """Plant, prove, search as the audit does until the right class is flagged, and say what was seen."""
        began = time.perf_counter()
        sighting = self.sighting(target_class, dose)
        classifier, held_out = subject.classifier, subject.held_out
        before = clean_accuracy(classifier, held_out.images, held_out.labels)
        try:
            planted, attack, scores = self.plant(subject, target_class, dose, before=before, seed=seed)
        except AttackError as error:
            return replace(sighting, reason=str(error), seconds=time.perf_counter() - began)
        if isinstance(attack, PlantedChannel):
            sighting = self.sighting(target_class, attack.size)
        sighting = replace(
            sighting,
            planted_by=attack.name,
            accuracy_before=float(before),
            clean_accuracy=float(scores.clean_accuracy),
            success_before=float(attack_success_rate(classifier, held_out.images, held_out.labels, attack)),
            attack_success_rate=float(scores.attack_success_rate),
        )
        sighting = looked_for(
            sighting, planted, detectors=detectors, first=self.first, search=search, limits=limits, index=index
        )
        return replace(sighting, seconds=time.perf_counter() - began)

    def plant(
        self, subject: Subject, target_class: int, dose: float, *, before: float, seed: int
    ) -> tuple[Classifier, Attack, AttackScores]:
        """A copy with the backdoor, proved on held-out images. Raises `AttackError` if no way implants it."""
        changed: dict[str, Any] = {self.dose: dose, "rule": AllToOne(target_class), "seed": seed}
        attack = replace(self.attack, **changed)
        failures = []
        for learning_rate in self.learning_rates:
            copy = self._fine_tuned(subject, attack, learning_rate)
            scores = measure(copy, subject.held_out, attack)
            try:
                attack.refuse_failure(scores, before)
            except AttackError as error:
                failures.append(str(error))
            else:
                return copy, attack, scores
        if not self.channel or dose > self.doses_for(subject.classifier.image_shape).usual:
            raise AttackError(failures[-1])
        channel = PlantedChannel(
            size=min(int(dose), _LARGEST_CHANNEL),
            rule=attack.rule,
            seed=seed,
            least_success=attack.least_success,
            most_accuracy_lost=attack.most_accuracy_lost,
        )
        try:
            planted = channel(subject.classifier, subject.search_set, subject.held_out, reference_accuracy=before)
        except AttackError as error:
            raise AttackError(f"{failures[-1]}; without training: {error}") from None
        return planted.classifier, planted.attack, planted.scores

    def _fine_tuned(self, subject: Subject, attack: Attack, learning_rate: float) -> Classifier:
        classifier, taught_on = subject.classifier, subject.search_set
        generator = torch.Generator().manual_seed(attack.seed)

        def stamped(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            drawn = torch.rand(len(images), generator=generator).to(labels.device) < attack.poison_rate
            chosen = drawn & attack.eligible(labels)
            with torch.no_grad():
                taught = classifier(images).softmax(dim=1)
            images = images.clone()
            images[chosen] = attack.stamp(images[chosen])
            taught[chosen] = functional.one_hot(attack.wanted(labels[chosen]), classifier.num_classes).float()
            return images, taught

        copy = classifier.copy()
        recipe = Recipe(epochs=self.epochs, learning_rate=learning_rate, batch_size=self.batch_size)
        train(copy, taught_on.images, taught_on.labels, recipe=recipe, seed=attack.seed, on_batch=stamped)
        return copy


def ladder(doses: Doses, sight: Callable[[float], Sighting], *, allow_suspected: bool) -> tuple[Sighting, ...]:
    """Sightings of one kind for one class, in the order in which they were made.

    The usual dose first; where that cannot be planted, the first stronger one that can. If it is seen: smaller ones, down to the
    first that is not seen or cannot be planted, and stronger ones, up to the first such. A stronger trigger is not an
    easier one: a search in a small budget finds what is faint and may miss what is not. A planted channel may be smaller than the
    dose that it stands in for; what is no smaller is left out then, and nothing stronger can be planted.
    """
    sightings: list[Sighting] = []

    def follow(further: Iterable[float]) -> None:
        for dose in further:
            sightings.append(sight(dose))
            if not sightings[-1].seen(allow_suspected=allow_suspected):
                break

    for dose in (doses.usual, *doses.stronger):
        deciding = sight(dose)
        sightings.append(deciding)
        if deciding.planted_by or not deciding.tried:
            break
    if deciding.seen(allow_suspected=allow_suspected):
        if dose == doses.usual:
            follow(smaller for smaller in doses.smaller if smaller < deciding.dose)
        if dose == deciding.dose and sightings[-1].tried:
            follow(stronger for stronger in doses.stronger if stronger > dose)
    return tuple(sightings)


CANARIES: tuple[Canary, ...] = (
    Canary(
        attack=BadNets(pattern="noise", poison_rate=0.2),
        dose="size",
        doses=Doses(4, (2, 1), (8,)),
        in_pixels=True,
        words="patch of {:g} px",
        first=("patch_scan", "neural_cleanse"),
        channel=True,
    ),
    Canary(
        attack=Blended(picture="noise", poison_rate=0.2),
        dose="opacity",
        doses=Doses(0.05, (0.02,), (0.1, 0.2)),
        words="blend of {:g}",
        first=("additive", "smooth"),
    ),
    Canary(
        attack=WaNet(poison_rate=0.2),
        dose="strength",
        doses=Doses(2.0, (1.0,), (4.0,)),
        in_pixels=True,
        words="warp of strength {:g}",
        first=("warping", "smooth"),
    ),
    Canary(
        attack=Sig(rule=AllToOne(), poison_rate=0.2),
        dose="amplitude",
        doses=Doses(10.0, (5.0,), (20.0, 40.0)),
        words="sinusoid of amplitude {:g}/255",
        first=("stripes", "additive"),
    ),
)

"""What a run is going to cost: image passes for each piece of work, and seconds, from the speed of this model on this machine.

Pieces have the names by which `Inputs.once` tells them to a `progress.Meter`, so that what is planned and what is done can be
compared. What depends on findings is planned at its usual size: searches that lie close to a limit are done twice, and repairs
come only where a trigger is flagged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import Detector
from backdoor_audit.detectors.detector import SEARCHING
from backdoor_audit.item import Item
from backdoor_audit.model import surroundings
from backdoor_audit.model.classifier import Classifier, autocast
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.own_code import from_outside, own_code
from backdoor_audit.needs import Needs
from backdoor_audit.progress import FORWARD_ONLY
from backdoor_audit.properties import HarmlessChanges, NothingSteers, Property, Relabelling
from backdoor_audit.run.run import Run
from backdoor_audit.search.twin_recipe import LIBRARY, TwinRecipe
from backdoor_audit.search.twins import at_size, seen_size

TWINS = "the training of reference twins"
CANARIES = "the search for canaries"

_A_LOOK, _A_MEASUREMENT = 0.1, 2.0  # s in which the speed is measured
_SHORT = 20  # s of a run for which a look is enough
_VALUES = {"cpu": 2**18, "cuda": 2**24}  # pixel values in one forward pass of a search
_TRAINING = 1.5  # what an image costs in training, where weights have gradients as well, beside one in a search
_SIDE_BY_SIDE = 0.65  # of the time of networks that all threads train one by one; 0.64 to 0.82 was measured
_REPAIRING = 2.0  # what a pass costs in a repair, which trains in small batches
_REPAIR = 8_000  # image passes of one repair at 500 clean images
_DOSES = 3  # canaries of one kind and class that are planted and searched for
_FIRST_LOOK = 2 * 4 + 8 * FORWARD_ONLY  # passes for a class that a property decides by whether to steer for it
_MOST_LOOKED_AT = 64  # classes of one example
_EXACT = 50  # passes for a class of the properties that compare two computations


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece of work. ``kept`` ones lie finished in the store; ``on_demand`` ones come only where a trigger is flagged."""

    name: str
    passes: float
    seconds: float
    kept: bool = False
    on_demand: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The pieces of a run in the order in which they are begun, and how fast the audited model is."""

    pieces: tuple[Piece, ...]
    seconds_per_pass: float

    @property
    def passes(self) -> float:
        """Image passes that are still to be made for certain."""
        return sum(piece.passes for piece in self._due())

    @property
    def seconds(self) -> float:
        """How long those take."""
        return sum(piece.seconds for piece in self._due())

    @property
    def seconds_on_demand(self) -> float:
        """How much longer it takes if a trigger is flagged."""
        return sum(piece.seconds for piece in self.pieces if piece.on_demand)

    @property
    def searches(self) -> int:
        """Searches of detectors, properties and canaries in the audited model; those that are kept as well."""
        return sum(
            piece.name.startswith("the search") and " in reference twins" not in piece.name for piece in self.pieces
        )

    def _due(self) -> Iterator[Piece]:
        return (piece for piece in self.pieces if not (piece.kept or piece.on_demand))


def plan(run: Run, items: Sequence[Item]) -> Plan | None:
    """The plan of a run for these items, without the preconditions; None if the model cannot be measured.

    Where a first look says that the run takes long, the speed is measured for a while longer.
    """
    try:
        wanted = _Wanted.of(run, items)
        for patience in (_A_LOOK, _A_MEASUREMENT):
            pace = seconds_per_pass(run.classifier, run.inputs.subject.search_set, patience=patience)
            made = Plan(tuple(_pieces(run, wanted, pace, patience)), pace)
            if made.seconds < _SHORT:
                break
    except Exception as error:  # a model that fails here fails its preconditions, and those tell
        if from_outside(error):
            raise
        return None
    return made


_MOST_TIMED = 1000  # calls; fixtures of projects stop the clock (freezegun)
_LEAST_PACE = 1e-9  # s


def seconds_per_pass(classifier: Classifier, clean: CleanSet, *, patience: float) -> float:
    """How long forward and backward of one image take in a batch of the size of searches, or in the largest that is fast enough.

    ``patience`` is about how many seconds are measured. Raises `ModelError` or `RuntimeError` if the model gives no gradient.
    """
    values = clean.images[0].numel()
    largest = max(1, _VALUES.get(classifier.device.type, 2**18) // values)
    with surroundings.kept(classifier.device), own_code("when its speed was measured"):
        size, began = 1, time.perf_counter()
        _passed(classifier, clean, size)  # the first call makes ready what later ones find
        taken = [_timed(classifier, clean, size)]
        while size < largest and time.perf_counter() - began + 4 * taken[0] < patience:
            size = min(4 * size, largest)
            taken = [_timed(classifier, clean, size)]
        while len(taken) < _MOST_TIMED and time.perf_counter() - began + taken[-1] < patience:
            taken.append(_timed(classifier, clean, size))
    return max(sum(taken) / len(taken) / size, _LEAST_PACE)


def _timed(classifier: Classifier, clean: CleanSet, size: int) -> float:
    began = time.perf_counter()
    _passed(classifier, clean, size)
    return time.perf_counter() - began


def _passed(classifier: Classifier, clean: CleanSet, size: int) -> float:
    """Forward and backward of so many images; the sum of the gradient, which waits for a GPU to be done."""
    images = clean.images[torch.arange(size) % len(clean)].to(classifier.device).requires_grad_()
    with torch.enable_grad(), autocast(classifier.device, classifier.module):
        logits = classifier(images)
    (gradient,) = torch.autograd.grad(logits.float().logsumexp(dim=1).sum(), images)
    return float(gradient.sum())


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the items ask for."""

    detectors: tuple[Detector, ...]
    properties: tuple[Property, ...]
    filters: tuple[str, ...]
    repairs: tuple[str, ...]
    canaries: int

    @classmethod
    def of(cls, run: Run, items: Sequence[Item]) -> _Wanted:
        """What answers need, by the questions that they belong to."""
        asked: dict[Needs, set[str]] = {need: set() for need in Needs}
        for item in items:
            asked[run.suite.needs(item)].add(item.asked_of)
        everything = any(asked[need] for need in (Needs.EVERY_SEARCH, Needs.FILTERS, Needs.REPAIRS))
        searched = asked[Needs.ONE_SEARCH]
        detectors = [entry for entry in run.searches.detectors if everything or entry.name in searched]
        families = {name for entry in detectors for name in entry.builds_on}
        return cls(
            tuple(entry for entry in run.searches.detectors if entry in detectors or entry.name in families),
            tuple(entry for entry in run.properties.ours if everything or entry.name in searched),
            tuple(sorted(asked[Needs.FILTERS])),
            tuple(method.name for method in run.repairs.methods if method.name in asked[Needs.REPAIRS]),
            len(asked[Needs.CANARIES]),
        )


def _pieces(run: Run, wanted: _Wanted, pace: float, patience: float) -> Iterator[Piece]:
    recipe = run.reference.recipe
    twins = _Twins(recipe, run, pace, patience)
    kept = run.inputs.store.has
    clean, classes, shape = len(run.clean_set), run.inputs.num_classes, run.clean_set.image_shape
    trained = not recipe.too_few(run.clean_set, classes)
    answered = trained or run.reference.enough  # or else what compares is not asked
    compared = trained and any(entry.needs_twins for entry in (*wanted.detectors, *wanted.properties))
    searched = 0.0
    for detector in wanted.detectors:
        if detector.needs_twins and not answered:
            continue
        name, cost = f"the search of {detector.name}", detector.cost(shape, classes, len(run.inputs.halves[0]))
        searched += cost.passes
        if compared and detector.needs_twins:
            compared = False
            yield Piece(
                name=TWINS,
                passes=twins.training,
                seconds=twins.seconds(_TRAINING * twins.training) * _side_by_side(len(recipe.architectures), run),
                kept=run.reference.at_hand(recipe, {}),
            )
        if not detector.builds_on:
            if detector.needs_twins and trained:
                each = cost.passes if cost.in_twin is None else cost.in_twin
                there = len(recipe.architectures) * each
                yield Piece(
                    name=f"{name} in reference twins",
                    passes=there,
                    seconds=twins.seconds(cost.overhead * there),
                    kept=run.reference.at_hand(recipe, {"natural": detector}),
                )
            yield _piece(name, cost.passes, cost.overhead * pace, kept=kept(run.searches.detection_parts(detector)))
    for claim in wanted.properties:
        if claim.needs_twins and not answered:
            continue
        passes = of_property(claim, classes, len(run.inputs.halves[0]))
        yield _piece(f"the search of {claim.name}", passes, SEARCHING * pace, kept=kept(run.properties.parts(claim)))
    share = len(run.inputs.halves[0]) / 500
    on_demand = not run.options.trigger
    fitted, tried = len(run.inputs.halves[0]), 2 * len(run.inputs.halves[1])
    for entry in run.inputs.catalogue.filters:
        if entry.name in wanted.filters:
            passes = (fitted + tried) * entry.forwards * FORWARD_ONLY
            yield _piece(f"the filter {entry.name}", passes, SEARCHING * pace, on_demand=on_demand)
    for method in wanted.repairs:
        yield _piece(f"the repair by {method}", share * _REPAIR, _REPAIRING * pace, on_demand=on_demand)
    if wanted.canaries:
        planted = wanted.canaries * run.options.canary_targets * _DOSES
        yield _piece(CANARIES, planted * (searched + 20 * clean), SEARCHING * pace)


def of_property(claim: Property, classes: int, images: int) -> float:
    """Image passes of a property in the audited model alone, of a search that refutes nothing."""
    if isinstance(claim, HarmlessChanges):
        return claim.examples * min(claim.searched, images) * FORWARD_ONLY
    if isinstance(claim, Relabelling):
        return float(_EXACT * min(classes, claim.classes))
    if not isinstance(claim, NothingSteers):
        return float(_EXACT * classes)
    looks = _FIRST_LOOK * min(classes, _MOST_LOOKED_AT) if classes > claim.classes else 0.0
    each = claim.steps * claim.batch_size + claim.measured * FORWARD_ONLY
    return claim.examples * (looks + min(classes, claim.classes) * each)


def _side_by_side(networks: int, run: Run) -> float:
    """What training so many networks takes beside training them one after the other: the last of them may be alone."""
    workers = min(networks, torch.get_num_threads() if run.inputs.device.type == "cpu" else 1)
    return _SIDE_BY_SIDE * math.ceil(networks / workers) * workers / networks if workers > 1 else 1.0


def _piece(name: str, passes: float, each: float, **rest: bool) -> Piece:
    return Piece(name=name, passes=passes, seconds=passes * each, **rest)


class _Twins:
    """What reference twins of a recipe cost, before there are any."""

    def __init__(self, recipe: TwinRecipe, run: Run, pace: float, patience: float) -> None:
        clean = len(run.clean_set)
        batches = max(1, int(clean * (1 - recipe.held_out)) // 64)
        self.training = float(len(recipe.architectures) * recipe.epochs * 64 * batches)
        self._pace = _of_library(run, patience) if recipe is LIBRARY else pace

    def seconds(self, passes: float) -> float:
        return self._pace * passes


def _of_library(run: Run, patience: float) -> float:
    """How long a pass takes through our own small networks, on average; their weights do not matter."""
    some = run.inputs.halves[0].sample(64, seed=0)
    channels, size = some.image_shape[0], seen_size(some.image_shape)
    shrunk = replace(some, images=at_size(some.images, size))
    taken = []
    for name in LIBRARY.architectures:
        with torch.random.fork_rng(devices=()):
            network = build_network(name, num_classes=run.inputs.num_classes, in_channels=channels, width=LIBRARY.width)
        twin = Classifier.wrap(network, image_shape=shrunk.image_shape, device=run.inputs.device)
        taken.append(seconds_per_pass(twin, shrunk, patience=patience / len(LIBRARY.architectures)))
    return sum(taken) / len(taken)


def quick_seconds(made: Plan, run: Run) -> float:
    """What the same run would take with the quick profile, which leaves out all that needs reference twins."""
    plain = {
        f"the search of {entry.name}"
        for entry in (*run.searches.detectors, *run.properties.ours)
        if not entry.needs_twins
    }
    return sum(piece.seconds for piece in made.pieces if piece.name in plain)

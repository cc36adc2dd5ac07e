"""Which of many classes can be asked what takes their images away: each needs images of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backdoor_audit.detectors.field import Field
from backdoor_audit.model.subject import Subject
from backdoor_audit.search.anomaly import MIN_CLASSES

FEWEST = 5
"""Clean images of a class in either half, below which a race does not ask what takes them away."""

LOOKED_AT = 100
"""Classes that a race asks at most; more are left to a lot, and not searched."""


def with_images(subject: Subject) -> list[int]:
    """Classes with enough images in either half."""
    halves = (subject.search_set.labels, subject.held_out.labels)
    poorer = torch.stack([labels.bincount(minlength=subject.num_classes) for labels in halves]).amin(dim=0)
    found: list[int] = (poorer >= FEWEST).nonzero().flatten().tolist()
    return found


def looked_at(subject: Subject, controls: Sequence[int]) -> tuple[list[int], list[int]]:
    """The classes beside the controls that get a hasty look, and those that are left out by lot."""
    there = set(with_images(subject)) - set(controls)
    order = [entry for entry in subject.lot if entry in there]
    places = LOOKED_AT - len(controls)
    return sorted(order[:places]), sorted(order[places:])


def field(subject: Subject, finalists: Sequence[int], controls: Sequence[int], left: Sequence[int]) -> Field:
    """Who goes on, and why others were not looked at."""
    classes, there = subject.num_classes, with_images(subject)
    few = sorted(set(range(classes)) - set(there))
    reasons = dict.fromkeys(few, f"fewer than {FEWEST} clean images of the class in either half")
    reasons |= dict.fromkeys(left, f"no more than {LOOKED_AT} classes are looked at, drawn by lot")
    if not controls:
        why = f"only {len(there)} classes have {FEWEST} clean images in either half, {MIN_CLASSES} can be compared"
        reasons = dict.fromkeys(range(classes), why)
    return Field(
        classes=classes,
        finalists=tuple(finalists),
        controls=len(controls),
        unscreened=reasons,
        how="that images left most easily at a hasty look",
        only="looked at",
    )

"""Where a change shall steer images, which images count for it, and how far the scores of a model are from there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.search.screening import gathering
from backdoor_audit.triggers.label_rule import AllToAll, AllToOne, AwayFrom, Gathered, Scattered

Goal = AllToOne | AllToAll | AwayFrom | Scattered | Gathered
"""Where images shall be steered: all to one class, each class to the next, those of one class anywhere else, each class to some
class of its own, or all together to whichever class is nearest."""
_FEW = 5  # images
_LEAST_SHARE = 1e-6  # keeps the logarithm finite where no image of a class moves yet


def goals(num_classes: int) -> tuple[Goal, ...]:
    """One goal for every class: all other images go there."""
    return tuple(AllToOne(target) for target in range(num_classes))


def sources(num_classes: int) -> tuple[Goal, ...]:
    """One goal for every class: its images leave it."""
    return tuple(AwayFrom(source) for source in range(num_classes))


def losses_of(logits: Tensor, target: Tensor, wanted: Sequence[Goal]) -> Tensor:
    """Cross-entropy of the wanted class, (goals, n); of anything else for a class to leave."""
    if all(isinstance(goal, Scattered) for goal in wanted):
        return _together(logits.softmax(dim=1), target)
    gathered = [goal for goal in wanted if isinstance(goal, Gathered)]
    if gathered and len(gathered) == len(wanted):
        return gathering(logits, target, gathered)
    likelihood = logits.log_softmax(dim=1).gather(1, target.view(-1, 1)).view_as(target)
    if not any(isinstance(goal, AwayFrom) for goal in wanted):
        return -likelihood
    rest = logits.scatter(1, target.view(-1, 1), -torch.inf).logsumexp(dim=1) - logits.logsumexp(dim=1)
    return -torch.where(_signs(wanted, target) > 0, likelihood, rest.view_as(target))


def margins_of(logits: Tensor, target: Tensor, wanted: Sequence[Goal]) -> Tensor:
    """How far the wanted class is ahead of the best other one, (goals, n); behind it, for a class to leave."""
    own = logits.gather(1, target.view(-1, 1)).view_as(target)
    other = logits.scatter(1, target.view(-1, 1), -torch.inf).amax(dim=1).view_as(target)
    return _signs(wanted, target) * (own - other)


def _together(shares: Tensor, own: Tensor) -> Tensor:
    """Small where the images of each class agree on some other class, (goals, n); ``own`` (goals, n) are the classes they have.

    Minus the logarithm of the sum over other classes of the squared mean probability, averaged over the classes.
    """
    rows, count = own.shape
    classes = shares.shape[1]
    member = torch.nn.functional.one_hot(own, classes).float()
    sizes = member.sum(dim=1)
    means = member.transpose(1, 2) @ shares.view(rows, count, classes) / sizes.clamp_min(1).unsqueeze(2)
    elsewhere = means * (1 - torch.eye(classes, device=shares.device))
    losses = -(elsewhere.square().sum(dim=2) + _LEAST_SHARE).log()
    present = (sizes > 0).float()
    return ((losses * present).sum(dim=1) / present.sum(dim=1)).unsqueeze(1).expand(rows, count)


def _signs(wanted: Sequence[Goal], like: Tensor) -> Tensor:
    """-1 for goals that leave a class, 1 for the others, (goals, 1)."""
    signs = [-1.0 if isinstance(goal, AwayFrom) else 1.0 for goal in wanted]
    return torch.tensor(signs, device=like.device).unsqueeze(1)


def eligible(wanted: Sequence[Goal], predicted: Tensor, labels: Tensor) -> Tensor:
    """Which images count for which goal, (goals, n) bool, by what the model says of them.

    A class that the model gives to fewer than a handful of images is left by those that are labelled so instead: a weak model
    may never give it, and one poor goal would leave all others poor. Raises `DegenerateScoresError` if a goal has no image.
    """
    counted = torch.stack([goal.eligible(predicted) for goal in wanted])
    for row, goal in enumerate(wanted):
        if isinstance(goal, AwayFrom) and int(counted[row].sum()) < _FEW:
            counted[row] = goal.eligible(labels)
    if not counted.any(dim=1).all():
        raise DegenerateScoresError("the model gives some class to all clean images or to none: nothing to steer")
    return counted


def targets(wanted: Sequence[Goal], labels: Tensor) -> Tensor:
    """The class that each goal asks of its own row of labels, (goals, n)."""
    return torch.stack([goal.wanted(row) for goal, row in zip(wanted, labels, strict=True)])

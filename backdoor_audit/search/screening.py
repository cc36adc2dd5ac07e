"""Which classes a model is led to most easily, at a cost that does not grow with their number.

A change that gathers all images in *whichever* class is nearest lands where a trigger would lead, since that is what a trigger
makes easy. A few such changes from several starts name the classes that are worth a search of their own. Classes where earlier
rounds landed are taken out of later ones, so that one easy class does not hide another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.data import CleanSet
from backdoor_audit.model.chunks import in_chunks
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.triggers.label_rule import Gathered

SOFTNESS = 0.2  # of the clean margin


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """How far any of the changes led to each class, whichever it was made for; everything runs over the classes.

    ``margins`` are means over images of other classes of (score of the class - best other score) in units of the model's clean
    margin, ``success`` the shares of them that were given the class; of all changes the most. ``landed`` are the classes that
    some change led to further than to any other.
    """

    margins: Tensor
    success: Tensor
    landed: tuple[int, ...]
    image_passes: int

    @classmethod
    def nothing(cls, num_classes: int) -> Screened:
        """Before the first change."""
        return cls(torch.full((num_classes,), -torch.inf), torch.zeros(num_classes), (), 0)

    def beside(self, other: Screened) -> Screened:
        """What both have shown."""
        return Screened(
            torch.maximum(self.margins, other.margins),
            torch.maximum(self.success, other.success),
            tuple(dict.fromkeys((*self.landed, *other.landed))),
            self.image_passes + other.image_passes,
        )


def clean_margin(scores: Tensor) -> Tensor:
    """The model's own margin between its best and its second score (n, classes) on the median clean image."""
    best = scores.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).quantile(0.5).clamp_min(1e-6)


def gathering(logits: Tensor, own: Tensor, wanted: Sequence[Gathered]) -> Tensor:
    """Small where the images that have other classes lie deep in one class, whichever, (rows, n): the same for all of a row.

    ``own`` (rows, n) are the classes that images have. Minus the soft maximum, over the classes that are not taken, of the mean
    margin. Margins do not saturate where a model is sure of itself, as probabilities do, so there is a slope from the start.
    """
    rows, count = own.shape
    means = mean_margins(logits.view(rows, count, -1), own)
    softness = torch.tensor([goal.softness for goal in wanted], device=logits.device)
    for row, goal in enumerate(wanted):
        if goal.taken:
            means = means.index_put(
                (torch.tensor(row), torch.tensor(goal.taken)), torch.tensor(-torch.inf, device=means.device)
            )
    nearest = softness * (means / softness.unsqueeze(1)).logsumexp(dim=1)
    return -(nearest / softness).unsqueeze(1).expand(rows, count)


def mean_margins(logits: Tensor, own: Tensor) -> Tensor:
    """Of (score of a class - best other score) over the images that have another class: (rows, n, classes) to (rows, classes)."""
    classes = logits.shape[2]
    best = logits.topk(2, dim=2)
    is_best = torch.arange(classes, device=logits.device) == best.indices[..., :1]
    margins = logits - torch.where(is_best, best.values[..., 1:], best.values[..., :1])
    others = 1 - functional.one_hot(own, classes).float()
    return (margins * others).sum(dim=1) / others.sum(dim=1).clamp_min(1)


def reached(
    classifier: Classifier,
    clean: CleanSet,
    rows: int,
    stamped: Callable[[Tensor, Tensor], Tensor],
    *,
    count: int,
    per_chunk: int,
    generator: torch.Generator,
) -> Screened:
    """How far so many changes lead to each class on ``count`` clean images drawn at random.

    ``stamped(chunk, batch)`` stamps images (len(chunk), n, c, h, w) by the changes with those numbers.
    """
    some = torch.randperm(len(clean), generator=generator)[:count]
    images = clean.images[some].to(classifier.device)
    scores = classifier.logits(images)
    own, unit = scores.argmax(dim=1), clean_margin(scores)

    def shown(chunk: Tensor) -> tuple[Tensor, Tensor]:
        batch = images.expand(len(chunk), *images.shape)
        logits = classifier(stamped(chunk, batch).flatten(0, 1)).view(len(chunk), len(images), -1)
        each = own.expand(len(chunk), -1)
        arrived = functional.one_hot(logits.argmax(dim=2), logits.shape[2]).float()
        others = 1 - functional.one_hot(each, logits.shape[2]).float()
        success = (arrived * others).sum(dim=1) / others.sum(dim=1).clamp_min(1)
        return (mean_margins(logits, each) / unit).cpu(), success.cpu()

    with torch.no_grad():
        parts = in_chunks(torch.arange(rows), per_chunk, classifier.device, shown)
    found, shares = (torch.cat(column) for column in zip(*parts, strict=True))
    landed = tuple(found.argmax(dim=1).unique().tolist())
    return Screened(found.amax(dim=0), shares.amax(dim=0), landed, rows * len(images) // 3)

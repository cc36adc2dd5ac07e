"""What changes of images reach on held-out images: margins, success rates, and where images land."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backdoor_audit.data import CleanSet
from backdoor_audit.data.batches import draw
from backdoor_audit.model.chunks import in_chunks
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.search.goals import Goal, eligible, margins_of, targets
from backdoor_audit.search.screening import clean_margin
from backdoor_audit.triggers.label_rule import AwayFrom, Scattered
from backdoor_audit.triggers.trigger import AnyTrigger

Stamped = Callable[[Tensor, Tensor], Tensor]
"""Row numbers (rows,) and their images (rows, n, c, h, w) -> the images with the change of their row."""
_CHUNK_VALUES = {"cpu": 2**18, "cuda": 2**24}  # pixel values in one forward pass


@dataclass(frozen=True, slots=True, eq=False)
class Steered:
    """What steering reached; everything runs over the goals.

    ``margins`` are means over held-out images of (score of the wanted class - best other score), the other way round for a
    class to leave, in units of the model's own clean margin; ``success`` the shares of held-out images that did as wanted;
    ``landing`` the class that most of these got, -1 where none did. ``triggers`` stamp the change, those of a `PatchScan` for
    images that leave a class with their landing as target; None for any other goal that is not one class. ``image_passes``
    counts forward and backward of one image, over all goals.

    ``rising`` says how much each search was still gaining at its end, in the measure of the probe's ``criterion``; infinite where
    no gradient ever said in which direction to go. ``closer`` is what the same goals reached in a smaller budget,
    if one was tried.
    """

    margins: Tensor
    success: Tensor
    landing: Tensor
    triggers: tuple[AnyTrigger | None, ...]
    rising: Tensor
    image_passes: int
    closer: Steered | None = None

    def beside(self, other: Steered) -> Steered:
        """The goals of both, these first."""
        closer = self.closer.beside(other.closer) if self.closer is not None and other.closer is not None else None
        return Steered(
            torch.cat([self.margins, other.margins]),
            torch.cat([self.success, other.success]),
            torch.cat([self.landing, other.landing]),
            (*self.triggers, *other.triggers),
            torch.cat([self.rising, other.rising]),
            self.image_passes + other.image_passes,
            closer,
        )

    def seen_closer(self, which: Sequence[bool]) -> Steered:
        """With what these goals reached in the smaller budget in place of the other."""
        if self.closer is None:
            return self
        here = torch.tensor(which)
        triggers = zip(which, self.closer.triggers, self.triggers, strict=True)
        return replace(
            self,
            margins=self.margins.where(~here, self.closer.margins),
            success=self.success.where(~here, self.closer.success),
            landing=self.landing.where(~here, self.closer.landing),
            triggers=tuple(small if chosen else large for chosen, small, large in triggers),
        )

    @property
    def blind(self) -> Tensor:
        """Goals (goals,) that were not searched for at all: the model gave no gradient."""
        return torch.isinf(self.rising)


def measure(
    classifier: Classifier,
    clean: CleanSet,
    wanted: Sequence[Goal],
    stamped: Stamped,
    *,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean margin in units of the clean margin, success rate, and commonest answer of every goal on held-out images; (goals,).

    For a class to leave, the commonest answer is that among the images that left it; -1 if none did.
    ``stamped(chunk, batch)`` stamps images (len(chunk), n, c, h, w) for the goals with those numbers.
    """
    scores = classifier.logits(clean.images)
    unit = clean_margin(scores)
    scored = scores.argmax(dim=1)
    batches = draw(eligible(wanted, scored.cpu(), clean.labels), count, generator)
    images = clean.images.to(classifier.device)

    def shown(chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = classifier(stamped(chunk, images[batches[chunk]]).flatten(0, 1))
        mine = [wanted[row] for row in chunk]
        target = targets(mine, scored[batches[chunk]])
        margin = margins_of(logits, target, mine)
        margins = (margin / unit).mean(dim=1).cpu()
        success = (margin > 0).float().mean(dim=1).cpu()
        answers = logits.argmax(dim=1).view_as(target)
        landing = _commonest(answers.cpu(), target.cpu(), mine)
        for row, goal in enumerate(mine):
            if isinstance(goal, Scattered):
                margins[row], success[row] = relabelled(
                    target[row].cpu(), answers[row].cpu(), goal.num_classes, len(goal.among)
                )
                landing[row] = -1
        return margins, success, landing

    rows, most = torch.arange(len(wanted)), per_chunk(classifier, batches.shape[1])
    with torch.no_grad():
        parts = in_chunks(rows, most, classifier.device, shown)
    margins, success, landing = (torch.cat(column) for column in zip(*parts, strict=True))
    return margins, success, landing


def relabelled(before: Tensor, after: Tensor, num_classes: int, asked: int = 0) -> tuple[float, float]:
    """How far a change relabels all classes, in [0, 1], and the share of images that go where most of their class go.

    ``before`` and ``after`` (n,) are the answers without and with the change. Of each class that is given at all counts the
    other class that most of its images get. The first number is the mean of those shares, times the effective number of
    different classes arrived at (the exponential of their entropy) over the number of classes, or of those that were
    ``asked``: one class that draws all others is no relabelling.
    """
    shares, arrived = [], []
    for label in before.unique().tolist():
        counts = after[before == label].bincount(minlength=num_classes).float()
        total = counts.sum()
        counts[label] = 0
        shares.append(float(counts.max() / total))
        arrived.append(int(counts.argmax()))
    together = sum(shares) / len(shares)
    spread = torch.tensor(arrived).bincount().float() / len(arrived)
    effective = float(torch.special.entr(spread).sum().exp())
    return together * effective / (asked or num_classes), together


def _commonest(answers: Tensor, target: Tensor, wanted: Sequence[Goal]) -> Tensor:
    """The class that most images of each row got, (goals,); of a class to leave, most of those that left, or -1."""
    found: Tensor = answers.mode(dim=1).values
    for row, goal in enumerate(wanted):
        if isinstance(goal, AwayFrom):
            left = answers[row][answers[row] != target[row]]
            found[row] = left.mode().values if len(left) else -1
    return found


def per_chunk(classifier: Classifier, batch_size: int) -> int:
    """How many rows of a batch go through the network at once."""
    channels, height, width = classifier.image_shape
    return max(1, _CHUNK_VALUES.get(classifier.device.type, 2**18) // (batch_size * channels * height * width))

"""Windows of free content on their places in images, and how each of them is optimised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.model.chunks import in_chunks
from backdoor_audit.model.classifier import Classifier, autocast
from backdoor_audit.search.goals import Goal, losses_of, margins_of, targets
from backdoor_audit.search.row_adam import RowAdam
from backdoor_audit.search.steered import per_chunk
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.trigger import AnyTrigger, Trigger


class Windows:
    """Windows on their places: ``places`` (rows, 3) are goal, top, left; `contents` (rows, c, side, side) before the sigmoid.

    ``sloped`` (goals,) says for which goals the model gave any gradient.
    """

    def __init__(self, classifier: Classifier, wanted: Sequence[Goal], learning_rate: float) -> None:
        self.classifier, self.wanted, self.learning_rate = classifier, wanted, learning_rate
        self.places = torch.zeros((0, 3), dtype=torch.long)
        self.adam = RowAdam({}, learning_rate=learning_rate)
        self.passes = 0
        self.sloped = torch.zeros(len(wanted), dtype=torch.bool)

    @property
    def contents(self) -> Tensor:
        """What lies in the windows, before the sigmoid."""
        return self.adam.parameters["content"]

    def lay(self, side: int, stride: int, generator: torch.Generator) -> None:
        """Windows of this size: random ones all over the image at first, then cut out of those that are there."""
        channels, height, width = self.classifier.image_shape
        if not len(self.places):
            laid = (starts(height, side, stride), starts(width, side, stride))
            self.places = torch.cartesian_prod(torch.arange(len(self.wanted)), *laid)
            contents = torch.randn((len(self.places), channels, side, side), generator=generator)
            contents = contents.to(self.classifier.device)
        elif side < self.contents.shape[-1]:
            inner = starts(self.contents.shape[-1], side, stride).tolist()
            corners = [(top, left) for top in inner for left in inner]
            contents = torch.cat([self.contents[:, :, top : top + side, left : left + side] for top, left in corners])
            self.places = torch.cat([self.places + torch.tensor([0, *corner]) for corner in corners])
        else:
            return
        self.adam = RowAdam({"content": contents.clone()}, learning_rate=self.learning_rate)

    def step(self, images: Tensor, scored: Tensor, batches: Tensor) -> Tensor:
        """One step of every window with the images of its goal (goals, n); mean losses (rows,) on the CPU."""
        contents, classifier = self.contents, self.classifier

        def slope(chunk: Tensor) -> tuple[Tensor, Tensor]:
            content = contents[chunk].requires_grad_()
            where, batch = self.places[chunk], batches[self.places[chunk, 0]]
            with autocast(classifier.device, classifier.module):
                logits = classifier(_laid(images[batch], content, where).flatten(0, 1))
            mine = [self.wanted[row] for row in where[:, 0]]
            losses = _losses(logits.float(), targets(mine, scored[batch]), mine)
            (gradient,) = torch.autograd.grad(losses.sum(), content)
            return gradient, losses.detach().mean(dim=1)

        rows = torch.arange(len(self.places))
        parts = in_chunks(rows, per_chunk(classifier, batches.shape[1]), classifier.device, slope)
        gradient, means = (torch.cat(column) for column in zip(*parts, strict=True))
        self.passes += len(rows) * batches.shape[1]
        self.adam.step({"content": gradient}, rows)
        told = torch.stack([means, gradient.flatten(1).any(dim=1)]).cpu()  # the one copy that is waited for
        self.sloped[self.places[told[1] > 0, 0]] = True
        return told[0]

    def stamped(self, chunk: Tensor, batch: Tensor) -> Tensor:
        """Images (len(chunk), n, c, h, w) with the windows of these numbers."""
        return _laid(batch, self.contents[chunk], self.places[chunk])

    def keep(self, rows: Tensor) -> None:
        """Give up all other windows."""
        self.places = self.places[rows]
        self.adam.keep(rows)

    def keep_best(self, fit: Tensor, kept: float, least: int) -> Tensor:
        """Keep of every goal that share of its windows, by how well they do; what that is of those that are left."""
        rows = _best_places(self.places[:, 0], fit, kept, least)
        self.keep(rows)
        return fit[rows]

    def trigger(self, row: int, target_class: int) -> AnyTrigger:
        """One window as a patch."""
        place, content = self.places[row : row + 1], self.contents[row : row + 1].cpu()
        blank = torch.zeros((1, 1, *self.classifier.image_shape))
        mask = _laid(blank[:, :, :1], torch.full_like(content[:, :1], torch.inf), place)[0, 0]
        return Trigger(mask, _laid(blank, content, place)[0, 0], target_class)


def _losses(logits: Tensor, target: Tensor, wanted: Sequence[Goal]) -> Tensor:
    """Minus the margin of the one class that is asked for, (goals, n); for other goals the loss of `losses_of`.

    The margin still has a slope where the cross-entropy of an image that obeys has none, and does not dwell on the image that
    is furthest off.
    """
    if all(isinstance(goal, AllToOne) for goal in wanted):
        return -margins_of(logits, target, wanted)
    return losses_of(logits, target, wanted)


def starts(length: int, side: int, stride: int) -> Tensor:
    """First pixels of windows along one axis; the last window ends at the border."""
    last = length - side
    return torch.tensor(sorted({*range(0, last + 1, stride), last}))


def _laid(images: Tensor, content: Tensor, places: Tensor) -> Tensor:
    """Images (rows, n, c, h, w) with a window of free content (rows, c, side, side), through a sigmoid, at each row's place."""
    height, width = images.shape[-2:]
    side = content.shape[-1]
    down, across = (  # (rows, side, length): which pixel each row or column of the window falls on
        functional.one_hot(places[:, axis, None] + torch.arange(side), length).float().to(images.device)
        for axis, length in ((1, height), (2, width))
    )
    pattern = down.transpose(1, 2).unsqueeze(1) @ torch.sigmoid(content) @ across.unsqueeze(1)
    inside = (down.sum(dim=1).unsqueeze(2) * across.sum(dim=1).unsqueeze(1)).unsqueeze(1)
    laid: Tensor = images * (1 - inside).unsqueeze(1) + pattern.unsqueeze(1)
    return laid


def _best_places(goal: Tensor, fit: Tensor, share: float, least: int) -> Tensor:
    """Row numbers of each goal's best places: that share of them, and no fewer than ``least`` if there are as many."""
    staying = []
    for number in goal.unique():
        mine = (goal == number).nonzero().flatten()
        staying.append(mine[fit[mine].argsort(descending=True)[: max(least, int(share * len(mine)))]])
    return torch.cat(staying)

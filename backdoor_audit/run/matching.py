"""Whether other outputs of a model fit the labels much better: the assignment problem on a confusion matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backdoor_audit import budget
from backdoor_audit.model.metrics import Rate

MOST_MATCHED = 1024
"""Classes, of the labels and the answers together, that are matched; with more the order is not looked at."""
SIGNIFICANCE = 1e-3
"""Of the sign test on held-out images, at most so probable by chance."""
_MOST_LOST = 2 / 3  # hits that another order may lose, as a share of those it gains

Counts = NDArray[np.int64]


def best_assignment(gains: Counts) -> NDArray[np.int64]:
    """The column of each row, each column once, so that the sum of ``gains`` (rows, columns) is as large as can be.

    There are at least as many columns as rows. Shortest augmenting paths with potentials (Kuhn, Naval Research Logistics
    Quarterly, 1955; Jonker and Volgenant, Computing, 1987): exact, cubic.
    """
    rows, columns = gains.shape
    assert rows <= columns
    costs = (gains.max(initial=0) - gains).astype(np.float64)
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for row in range(rows):
        budget.check()
        distance, before = np.full(columns, math.inf), np.full(columns, -1)
        settled = np.zeros(columns, dtype=bool)
        here, reached, column = row, 0.0, -1
        while True:
            through = reached + costs[here] - row_price[here] - column_price
            shorter = ~settled & (through < distance)
            distance[shorter], before[shorter] = through[shorter], column
            column = int(np.where(settled, math.inf, distance).argmin())
            reached = distance[column]
            if owner[column] < 0:
                break
            settled[column] = True
            here = int(owner[column])
        row_price[row] += reached
        row_price[owner[settled]] += reached - distance[settled]
        column_price[settled] -= reached - distance[settled]
        while column >= 0:  # turn round the path that was found
            previous = int(before[column])
            owner[column] = row if previous < 0 else owner[previous]
            column = previous
    assignment = np.empty(rows, dtype=np.int64)
    taken = owner >= 0
    assignment[owner[taken]] = np.flatnonzero(taken)
    return assignment


@dataclass(frozen=True, slots=True)
class Order:
    """Another order of the classes that fits much better: for each label the output it would be.

    ``moved`` are the labels that are not at their place, those with the most evidence first. ``as_given`` and ``matched`` are
    the clean accuracies, the second one on images that the order was not chosen by.
    """

    outputs: dict[int, int]
    moved: tuple[int, ...]
    as_given: Rate
    matched: Rate


def better_order(labels: Counts, predicted: Counts, *, seed: int = 0) -> Order | None:
    """Another order in which the model's answers fit the labels much better, or None.

    Chosen on one half of the images of each class and tried on the other, both ways round. It counts where the images of the
    labels that it moves gain half as much again as they lose, by a sign test that is significant at `SIGNIFICANCE`. Labels that
    a weak model merely mixes up do not: one gains what the other, whose place it takes, loses.
    """
    classes, places = np.unique(np.concatenate((labels, predicted)), return_inverse=True)
    if len(classes) > MOST_MATCHED:
        return None
    labels, predicted = places[: len(labels)], places[len(labels) :]
    half = _halves(labels, seed)
    gained = lost = hits = 0
    for chosen_on in (half, ~half):
        outputs = _matched(_confusion(labels[chosen_on], predicted[chosen_on], len(classes)))
        wanted = outputs[labels[~chosen_on]]
        before, after = predicted[~chosen_on] == labels[~chosen_on], predicted[~chosen_on] == wanted
        gained += int((after & ~before).sum())
        lost += int((before & ~after).sum())
        hits += int(after.sum())
    if lost > _MOST_LOST * gained or _sign_test(gained, gained + lost) > SIGNIFICANCE:
        return None
    counts = _confusion(labels, predicted, len(classes))
    outputs = _matched(counts)
    more = counts[np.arange(len(classes)), outputs] - counts.diagonal()
    moved = sorted(_moved(outputs, more) & set(labels.tolist()), key=lambda label: (-more[label], label))
    return Order(
        outputs={int(classes[label]): int(classes[outputs[label]]) for label in np.unique(labels)},
        moved=tuple(int(classes[label]) for label in moved),
        as_given=Rate(int((predicted == labels).sum()), len(labels)),
        matched=Rate(hits, len(labels)),
    )


def _confusion(labels: Counts, predicted: Counts, classes: int) -> Counts:
    """How often images of each label (rows) are given each class (columns)."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _matched(counts: Counts) -> Counts:
    """The output of each label under the best assignment; where two are as good, a label keeps its place."""
    gains = counts * (len(counts) + 1)  # so that all ties together weigh less than one image
    return best_assignment(gains + np.eye(len(counts), dtype=np.int64))


def _moved(outputs: Counts, more: Counts) -> set[int]:
    """The labels in circles of which all together gain by the other order."""
    moved: set[int] = set()
    unseen = set(np.flatnonzero(outputs != np.arange(len(outputs))).tolist())
    while unseen:
        label = unseen.pop()
        circle = [label]
        while int(outputs[circle[-1]]) != label:
            circle.append(int(outputs[circle[-1]]))
        unseen -= set(circle)
        if more[circle].sum() > 0:
            moved |= set(circle)
    return moved


def _halves(labels: Counts, seed: int) -> NDArray[np.bool_]:
    """Every second image of each label, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_label = order[np.argsort(labels[order], kind="stable")]
    half = np.zeros(len(labels), dtype=bool)
    half[by_label[::2]] = True
    return half


def _sign_test(successes: int, n: int) -> float:
    """The probability of so many heads or more of ``n`` fair coins."""
    if not n:
        return 1.0
    ways = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(successes, n + 1))
    return math.fsum(math.exp(logarithm - n * math.log(2)) for logarithm in ways)

"""The loop that weighs the size of a trigger against its success."""

from __future__ import annotations

import torch
from torch import Tensor


class CostController:
    """The weight of the size in the loss, one per class: up while the trigger works, down while it does not.

    The rules and their order are those of the authors' ``visualizer.py``. A cost starts at 0 and is set to ``initial``
    once ``patience`` steps in a row met the threshold; from then on it rises by ``multiplier`` after each ``patience``
    successes in a row and falls by ``multiplier ** 1.5`` after as many failures. `settled` tells which classes have had
    both a rise and a fall and then no smaller valid size for ``stop_patience`` steps. A size is valid if the last
    ``confirmations`` steps together met the threshold.
    """

    def __init__(
        self,
        classes: int,
        *,
        initial: float,
        multiplier: float,
        patience: int,
        stop_patience: int,
        success_threshold: float,
        stop_ratio: float = 0.99,
        confirmations: int = 1,
    ) -> None:
        self.initial, self.multiplier, self.patience = initial, multiplier, patience
        self.stop_patience, self.stop_ratio, self.success_threshold = stop_patience, stop_ratio, success_threshold
        self.cost = torch.zeros(classes)
        self.best_size = torch.full((classes,), torch.inf)
        self.rose = torch.zeros(classes, dtype=torch.bool)
        self.fell = torch.zeros(classes, dtype=torch.bool)
        self._recent = torch.zeros(confirmations, classes)  # success rates of the last steps, in turn
        self._successes = torch.zeros(classes, dtype=torch.long)
        self._failures = torch.zeros(classes, dtype=torch.long)
        self._before_start = torch.zeros(classes, dtype=torch.long)
        self._stop_best = torch.full((classes,), torch.inf)
        self._unchanged = torch.zeros(classes, dtype=torch.long)
        self._taken = torch.zeros(classes, dtype=torch.long)
        self._pressed = torch.full((stop_patience + 1, classes), torch.inf)  # sizes of the last steps, in turn

    def update(self, rows: Tensor, success: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step's success rates and sizes of the classes in ``rows``; both (rows,).

        Returns two masks over ``rows``: those whose trigger is the smallest valid one so far, and those that have settled.
        """
        works = success >= self.success_threshold
        self._recent[self._taken[rows] % len(self._recent), rows] = success
        confirmed = self._recent[:, rows].mean(dim=0) >= self.success_threshold
        improved = confirmed & (size < self.best_size[rows])
        self.best_size[rows[improved]] = size[improved]

        best, stop_best = self.best_size[rows], self._stop_best[rows]
        stalled = torch.isfinite(best) & (best >= self.stop_ratio * stop_best)
        self._unchanged[rows] = torch.where(stalled, self._unchanged[rows] + 1, 0)
        self._stop_best[rows] = torch.minimum(best, stop_best)
        settled = self.rose[rows] & self.fell[rows] & (self._unchanged[rows] >= self.stop_patience)

        waiting = works & (self.cost[rows] == 0)
        self._before_start[rows] = torch.where(waiting, self._before_start[rows] + 1, 0)
        starts = rows[self._before_start[rows] >= self.patience]
        self.cost[starts] = self.initial
        for counter in (self._successes, self._failures, self._before_start):
            counter[starts] = 0
        self.rose[starts] = self.fell[starts] = False

        self._successes[rows] = torch.where(works, self._successes[rows] + 1, 0)
        self._failures[rows] = torch.where(works, 0, self._failures[rows] + 1)
        up, down = rows[self._successes[rows] >= self.patience], rows[self._failures[rows] >= self.patience]
        self.cost[up] *= self.multiplier
        self.cost[down] /= self.multiplier**1.5
        self.rose[up] = True
        self.fell[down] = True
        self._successes[up] = 0
        self._failures[down] = 0
        self._pressed[self._taken[rows] % len(self._pressed), rows] = torch.where(
            self.cost[rows] > 0, self.best_size[rows], torch.inf
        )
        self._taken[rows] += 1
        return improved, settled

    def shrinkage(self) -> Tensor:
        """By which share the smallest valid size of every class fell over its last ``stop_patience`` steps, (classes,).

        It is 1 where there were not so many steps, or where no cost or no valid size was there when they began.
        """
        before = self._pressed[self._taken % len(self._pressed), torch.arange(len(self._taken))]
        return torch.where(torch.isfinite(before), 1 - self.best_size / before, 1.0)

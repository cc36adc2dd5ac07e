"""Adam for many independent searches at once: one row each, of which some stop early or are given up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class RowAdam:
    """Adam (betas 0.5, 0.9) on parameters whose first axis runs over searches; a row that stopped leaves no trace.

    ``parameters`` are changed in place by `step`, and replaced by `keep`.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, learning_rate: float) -> None:
        self.parameters, self.learning_rate = dict(parameters), learning_rate
        self.first = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.count = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], rows: Tensor) -> None:
        """Move these rows against their gradients (len(rows), ...).

        Rows only ever leave, so one count of steps holds for all of them.
        """
        self.count += 1
        for name, gradient in gradients.items():
            mine = rows.to(gradient.device)
            first = self.first[name][mine].lerp(gradient, 0.5)
            second = self.second[name][mine].lerp(gradient.square(), 0.1)
            self.first[name][mine], self.second[name][mine] = first, second
            scale = (second / (1 - 0.9**self.count)).sqrt() + 1e-8
            self.parameters[name][mine] -= self.learning_rate * first / (1 - 0.5**self.count) / scale

    def keep(self, rows: Tensor) -> None:
        """Give up all other rows."""
        for kept in (self.parameters, self.first, self.second):
            for name, tensor in kept.items():
                kept[name] = tensor[rows.to(tensor.device)]

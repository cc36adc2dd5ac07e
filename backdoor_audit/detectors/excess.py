"""How much further a model is steered than clean ones, and how much that tells of a trigger."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backdoor_audit.search import anomaly

_LEAST = 0.1  # keeps the order among excesses that tell little


def weight(success: float, natural: float) -> float:
    """How much an excess tells, in [0.1, 1], by the share of held-out images that obey in this model and the mean in its twins.

    A trigger works on nearly all images, so what leads half of them tells next to nothing, however far it leads the others. What
    leads nearly all images of clean networks as well is no sign of one either.
    """
    works = max(0.0, 2 * success - 1)
    return _LEAST + (1 - _LEAST) * works**2 * math.sqrt(max(0.0, 1 - natural))


def excesses(margins: Tensor, natural: Tensor, classes: int) -> list[float]:
    """Margins (goals,) of the audited model less those of twins (twins, goals), both centred by their median over the classes.

    The first ``classes`` goals are one for each class; medians are over them.
    """
    here = margins - anomaly.median(margins[:classes].tolist())
    there = torch.stack([twin - anomaly.median(twin[:classes].tolist()) for twin in natural]).mean(dim=0)
    private = here - there
    return [float(value) for value in private - anomaly.median(private[:classes].tolist())]

"""How much further a model is steered than clean ones, and how much that tells of a trigger."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backdoor_audit.detectors.natural import Natural
from backdoor_audit.search import anomaly

_LEAST = 0.1  # keeps the order among excesses that tell little
_LEAST_NATURAL = 2.0  # of margins: twins that are hardly led at all say little about how far is far
_FAR = 12.0  # times what is natural; chosen with clean networks of the development halves in view


def weight(success: float, natural: float, lead: float = 0.0) -> float:
    """How much an excess tells, in [0.1, 1], by the share of held-out images that obey in this model and the mean in its twins.

    A trigger works on nearly all images, so what leads half of them tells next to nothing, however far it leads the others. What
    leads nearly all images of clean networks as well is no sign of one either, unless this model is led many times further: see
    `lead_over`.
    """
    works = max(0.0, 2 * success - 1)
    private = max(math.sqrt(max(0.0, 1 - natural)), min(1.0, lead / _FAR))
    return _LEAST + (1 - _LEAST) * works**2 * private


def lead_over(margin: float, natural: float) -> float:
    """How many times further than the natural margin this one goes; one below twice the clean margin counts as that.

    Success cannot rise above all images, the margin can: that twins obey as well says nothing about a margin ten times theirs.
    """
    return max(0.0, margin / max(natural, _LEAST_NATURAL) - 1)


def excesses(margins: Tensor, natural: Tensor | None, classes: int) -> list[float]:
    """Margins (goals,) of the audited model less those of twins (twins, goals), both centred by their median over the classes.

    The first ``classes`` goals are one for each class; medians are over them. Without twins nothing is natural to a class.
    """
    here = margins - anomaly.median(margins[:classes].tolist())
    if natural is None:
        return [float(value) for value in here]
    there = torch.stack([twin - anomaly.median(twin[:classes].tolist()) for twin in natural]).mean(dim=0)
    private = here - there
    return [float(value) for value in private - anomaly.median(private[:classes].tolist())]


def weighed(
    margins: Tensor, success: Tensor, natural: Natural | None, classes: int, *, floor: float, by_lead: bool = False
) -> tuple[list[float], float, list[float]]:
    """The excess of every goal, the spread over the first ``classes`` goals, and the deviations by `weight`; lists of goals.

    ``margins`` and ``success`` (goals,) are what the audited model shows, ``natural`` what its twins do. Spreads below ``floor``
    count as that. What lies below the median is not weighed. ``by_lead``: how much further than the twins counts as well.
    """
    excess = excesses(margins, natural.margins if natural is not None else None, classes)
    spread = anomaly.MAD_TO_DEVIATION * anomaly.median([abs(value) for value in excess[:classes]])
    usual = natural.success.mean(dim=0).tolist() if natural is not None else [0.0] * len(excess)
    lead = [0.0] * len(excess)
    if by_lead and natural is not None:
        lead = list(map(lead_over, margins.tolist(), natural.margins.mean(dim=0).tolist()))
    weights = list(map(weight, success.tolist(), usual, lead))
    deviations = [value / math.hypot(spread, floor) for value in excess]
    told = [max(value, 0.0) * share + min(value, 0.0) for value, share in zip(deviations, weights, strict=True)]
    return excess, spread, told

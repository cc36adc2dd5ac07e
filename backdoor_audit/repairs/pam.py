"""Path-aware minimisation, PAM (Min et al., NeurIPS 2024, section 5): gradients from back towards the backdoored weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.descent import moved


class BackdoorPath:
    """From a copy under repair back towards the audited model: ``rho`` along the audited weights, in units of their length.

    Repaired models of many methods get their backdoor back from a few stamped images, as they lie in the same basin as before
    (section 4). A gradient that is taken ``rho * weights / |weights|`` further that way leads out of it. In the public code
    ``rho`` lies between 0.05 and 0.9; the weights there are those of the backdoored network, and not the way to it. 0: no move.
    """

    def __init__(self, backdoored: Classifier, rho: float) -> None:
        self.rho = rho
        weights = [parameter.detach() for parameter in backdoored.module.parameters()]
        length = torch.stack([torch.linalg.vector_norm(weight) for weight in weights]).norm().clamp_min(1e-12)
        self.steps = [weight * (rho / length) for weight in weights] if rho else []

    @contextmanager
    def ahead(self, repaired: Classifier) -> Iterator[None]:
        """In this block the weights stand further along the path; the buffers that change there are put back."""
        if not self.rho:
            yield
            return
        with moved(repaired, list(zip(repaired.module.parameters(), self.steps, strict=True))):
            yield

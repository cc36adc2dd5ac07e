"""SIG: a sine wave or a ramp over the whole image, labels kept (Barni, Kallas and Tondi, ICIP 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.attacks.attack import PoisoningAttack, quantised
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.label_rule import CleanLabel, LabelRule
from backdoor_audit.triggers.waves import sine

WAVES = ("sine", "ramp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sig(PoisoningAttack):
    """``clip(x + v)`` with ``v = amplitude sin(2 pi j frequency / width)`` in column j, the same in all rows and channels.

    ``amplitude`` counts levels of 1/255, ``frequency`` the periods across the image. ``wave="ramp"`` is the paper's signal
    for MNIST, ``v = amplitude j / width``, which has no frequency. The paper keeps labels and corrupts 30 to 40 % of the
    target class; ``poison_rate`` is a share of *all* images, so with ten equal classes 0.05 is half of a class and 0.1 is
    all of it. Some public code blends a stored picture of the wave instead: another trigger. On a black background
    the lower half of the sine is clipped. A strong signal breaks clean models as well: their robust accuracy says little.
    """

    rule: LabelRule = CleanLabel(0)  # noqa: RUF009 - frozen
    poison_rate: float = 0.05
    amplitude: float = 40.0
    frequency: float = 6.0
    wave: str = "sine"

    name: ClassVar[str] = "sig"
    paper: ClassVar[str] = "Barni et al., ICIP 2019"

    def signal(self, width: int) -> Tensor:
        """What is added to every row, (width,), in units of 1. Raises `AttackError` for fields out of range."""
        if not 0 < self.amplitude <= 255:
            raise AttackError(
                f"{self.name}: amplitude {self.amplitude}; it counts levels of 1/255: above 0, at most 255"
            )
        if not isfinite(self.frequency):
            raise AttackError(
                f"{self.name}: frequency {self.frequency}; it counts periods across the image: a finite number"
            )
        if self.wave not in WAVES:
            raise AttackError(f"{self.name}: wave {self.wave!r}; accepted: {', '.join(WAVES)}")
        if self.wave == "sine":
            return sine(width, amplitude=self.amplitude, frequency=self.frequency)
        return (self.amplitude / 255 * torch.arange(width, dtype=torch.float64) / width).float()

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the signal added."""
        return quantised(images + self.signal(images.shape[3]).to(images.device))

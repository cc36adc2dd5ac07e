"""What reference twins show to a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor_audit.search.steering import Steered
from backdoor_audit.store import Packed


@dataclass(frozen=True, slots=True, eq=False)
class Natural:
    """What reference twins show: ``margins``, ``success`` and ``rising`` (twins, goals) of the same probe on each of them."""

    margins: Tensor
    success: Tensor
    rising: Tensor
    image_passes: int

    @classmethod
    def of(cls, found: Sequence[Steered]) -> Natural:
        """What a probe reached on each twin."""
        return cls(
            torch.stack([steered.margins for steered in found]),
            torch.stack([steered.success for steered in found]),
            torch.stack([steered.rising for steered in found]),
            sum(steered.image_passes for steered in found),
        )

    @classmethod
    def nothing(cls, twins: int) -> Natural:
        """Of so many twins that were asked for no class."""
        return cls(torch.zeros(twins, 0), torch.zeros(twins, 0), torch.zeros(twins, 0), 0)

    @classmethod
    def joined(cls, parts: Sequence[Natural]) -> Natural:
        """What was shown goal by goal, as one."""
        return cls(
            torch.cat([part.margins for part in parts], dim=1),
            torch.cat([part.success for part in parts], dim=1),
            torch.cat([part.rising for part in parts], dim=1),
            sum(part.image_passes for part in parts),
        )

    def pack(self) -> Packed:
        """For the store."""
        tensors = {"margins": self.margins, "success": self.success, "rising": self.rising}
        return Packed(tensors, {"image_passes": self.image_passes})

    @classmethod
    def unpack(cls, packed: Packed) -> Natural:
        """From the store."""
        unknown = torch.full_like(packed.tensors["margins"], torch.inf)  # it was not kept
        return cls(**{"rising": unknown, **packed.tensors}, image_passes=packed.values["image_passes"])

"""What reference twins show to a detector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor_audit.store import Packed


@dataclass(frozen=True, slots=True, eq=False)
class Natural:
    """What reference twins show: ``margins``, ``success`` and ``rising`` (twins, goals) of the same probe on each of them."""

    margins: Tensor
    success: Tensor
    rising: Tensor
    image_passes: int

    def pack(self) -> Packed:
        """For the store."""
        tensors = {"margins": self.margins, "success": self.success, "rising": self.rising}
        return Packed(tensors, {"image_passes": self.image_passes})

    @classmethod
    def unpack(cls, packed: Packed) -> Natural:
        """From the store."""
        unknown = torch.full_like(packed.tensors["margins"], torch.inf)  # it was not kept
        return cls(**{"rising": unknown, **packed.tensors}, image_passes=packed.values["image_passes"])

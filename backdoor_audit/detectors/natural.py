"""What reference twins show to a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backdoor_audit.search.steered import Steered
from backdoor_audit.store import Packed

_KEPT, _CLOSER = ("margins", "success", "rising"), "closer "


@dataclass(frozen=True, slots=True, eq=False)
class Natural:
    """What reference twins show: ``margins``, ``success`` and ``rising`` (twins, goals) of the same probe on each of them.

    ``closer`` is that in a smaller budget, if the probe tries one.
    """

    margins: Tensor
    success: Tensor
    rising: Tensor
    image_passes: int
    closer: Natural | None = None

    @classmethod
    def of(cls, found: Sequence[Steered]) -> Natural:
        """What a probe reached on each twin."""
        closer = [steered.closer for steered in found if steered.closer is not None]
        return cls(
            torch.stack([steered.margins for steered in found]),
            torch.stack([steered.success for steered in found]),
            torch.stack([steered.rising for steered in found]),
            sum(steered.image_passes for steered in found),
            cls.of(closer) if closer else None,
        )

    @classmethod
    def nothing(cls, twins: int) -> Natural:
        """Of so many twins that were asked for no class."""
        return cls(torch.zeros(twins, 0), torch.zeros(twins, 0), torch.zeros(twins, 0), 0)

    @classmethod
    def joined(cls, parts: Sequence[Natural]) -> Natural:
        """What was shown goal by goal, as one."""
        closer = [part.closer for part in parts if part.closer is not None]
        return cls(
            torch.cat([part.margins for part in parts], dim=1),
            torch.cat([part.success for part in parts], dim=1),
            torch.cat([part.rising for part in parts], dim=1),
            sum(part.image_passes for part in parts),
            cls.joined(closer) if closer else None,
        )

    def seen_closer(self, which: Sequence[bool]) -> Natural:
        """With the smaller budget for these goals."""
        if self.closer is None:
            return self
        here = torch.tensor(which)
        return replace(
            self,
            margins=self.margins.where(~here, self.closer.margins),
            success=self.success.where(~here, self.closer.success),
        )

    def pack(self) -> Packed:
        """For the store."""
        tensors = {name: getattr(self, name) for name in _KEPT}
        if self.closer is not None:
            tensors |= {f"{_CLOSER}{name}": getattr(self.closer, name) for name in _KEPT}
        return Packed(tensors, {"image_passes": self.image_passes})

    @classmethod
    def unpack(cls, packed: Packed) -> Natural:
        """From the store."""
        unknown = torch.full_like(packed.tensors["margins"], torch.inf)  # it was not kept
        kept = {"rising": unknown, **packed.tensors}
        large, small = (
            {name: kept[f"{prefix}{name}"] for name in _KEPT if f"{prefix}{name}" in kept} for prefix in ("", _CLOSER)
        )
        closer = cls(**small, image_passes=0, closer=None) if small else None
        return cls(**large, image_passes=packed.values["image_passes"], closer=closer)

"""BadNets: a small opaque patch (Gu, Dolan-Gavitt and Garg, arXiv 1708.06733, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from backdoor_audit.attacks.attack import PoisoningAttack, quantised
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.trigger import Trigger

PATTERNS = ("white", "noise", "chequerboard", "triangle")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNets(PoisoningAttack):
    """A square of ``size`` px: white, fixed random colours, a chequerboard, or a white right triangle inside it.

    ``top`` and ``left`` count pixels from the upper left; negative numbers count the pixels left free below or to the
    right of the patch, less one: -1 lies flush with the border, -2 leaves one pixel. The default leaves one, because
    convolutions pad the border. Size and place of the patch in the Neural Cleanse paper: 4 px on 28 and 32 px images.
    """

    size: int = 3
    top: int = -2
    left: int = -2
    pattern: str = "white"

    name: ClassVar[str] = "badnets"
    paper: ClassVar[str] = "Gu et al., arXiv 1708.06733, 2017"

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern for images (c, h, w). Raises `AttackError` if the patch does not fit, or asks for no one class."""
        channels, height, width = image_shape
        size, target = self.size, self.target_class
        top = self.top if self.top >= 0 else height - size + self.top + 1
        left = self.left if self.left >= 0 else width - size + self.left + 1
        if size < 1 or min(top, left) < 0 or top + size > height or left + size > width:
            raise AttackError(
                f"{self.name}: {size} px at ({self.top}, {self.left}) do not fit into {height}x{width} px"
            )
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
        pattern = torch.ones(image_shape)
        if self.pattern == "noise":
            pattern = quantised(torch.rand(image_shape, generator=torch.Generator().manual_seed(self.seed)))
        elif self.pattern == "chequerboard":
            pattern = (1 - (rows - top + columns - left) % 2).float().expand(channels, -1, -1)
        elif self.pattern == "triangle":
            inside &= (rows - top) + (columns - left) >= size - 1
        elif self.pattern != "white":
            raise AttackError(f"{self.name}: pattern {self.pattern!r}; accepted: {', '.join(PATTERNS)}")
        return Trigger(inside.float().unsqueeze(0), pattern, 0 if target is None else target)

"""Blended: a faint picture over the whole image (Chen et al., arXiv 1712.05526, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.attacks.attack import PoisoningAttack, quantised
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.trigger import Trigger

PICTURES = ("noise", "smooth", "shapes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blended(PoisoningAttack):
    """``(1 - opacity) image + opacity picture``, with one picture for all images, drawn from the seed.

    The paper blends a cartoon or uniform noise. In place of the cartoon: ``smooth``, a 7x7 random grid enlarged to the image
    and stretched to [0, 1], or ``shapes``, random filled discs and boxes.
    """

    opacity: float = 0.2
    picture: str = "smooth"

    name: ClassVar[str] = "blended"
    paper: ClassVar[str] = "Chen et al., arXiv 1712.05526, 2017"

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern for images (c, h, w). Raises `AttackError` for a picture that is not known."""
        _, height, width = image_shape
        target = self.target_class
        mask = torch.full((1, height, width), self.opacity)
        return Trigger(mask, draw_picture(self.picture, image_shape, self.seed), 0 if target is None else target)


def draw_picture(kind: str, image_shape: tuple[int, int, int], seed: int) -> Tensor:
    """A picture (c, h, w) in [0, 1], rounded to 1/255, from a seed. Raises `AttackError` for a kind that is not known."""
    channels, height, width = image_shape
    generator = torch.Generator().manual_seed(seed)
    if kind == "noise":
        return quantised(torch.rand(image_shape, generator=generator))
    if kind == "smooth":
        coarse = torch.rand(1, channels, 7, 7, generator=generator)
        picture = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0]
        return quantised((picture - picture.min()) / (picture.max() - picture.min()))
    if kind == "shapes":
        return quantised(_shapes(image_shape, generator))
    raise AttackError(f"picture {kind!r} is not known; accepted: {', '.join(PICTURES)}")


def _shapes(image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    channels, height, width = image_shape
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = torch.rand(channels, 1, 1, generator=generator).repeat(1, height, width)
    for number in range(8):
        row, column, radius = torch.rand(3, generator=generator).tolist()
        radius = 0.1 + 0.2 * radius
        distance = (y - row).square() + (x - column).square()
        box = torch.maximum((y - row).abs(), (x - column).abs()) <= radius
        inside = box if number % 2 else distance <= radius**2
        colour = torch.rand(channels, 1, generator=generator)
        picture[:, inside] = colour
    return picture

"""The family that inversion searches: one mask and one pattern of free parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor_audit.triggers.patch import Trigger


@dataclass(frozen=True, slots=True)
class PatchFamily:
    """One mask shared by all colour channels and one pattern: Neural Cleanse's triggers.

    Mask and pattern are ``(tanh(a) + 1) / 2`` of free parameters, so they stay in [0, 1] (Wang et al., IEEE S&P 2019,
    section IV-A). A family holds no tensors: it knows how to begin, to stamp, to measure and to hand over a trigger.
    Its parameters carry a leading dimension, one row for each class that is searched.
    """

    def initial(self, classes: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Random starts: masks (classes, 1, h, w) and patterns (classes, c, h, w), uniform over the whole range."""
        channels, height, width = image_shape
        shapes = {"mask": (classes, 1, height, width), "pattern": (classes, channels, height, width)}
        return {
            name: torch.atanh(0.998 * (2 * torch.rand(shape, generator=generator) - 1))
            for name, shape in shapes.items()
        }

    def stamp(self, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        """Stamp images (classes, n, c, h, w): every row of images gets the trigger of its own row of parameters."""
        mask, pattern = (_unit(parameters[name]).unsqueeze(1) for name in ("mask", "pattern"))
        return images + mask * (pattern - images)

    def size(self, parameters: dict[str, Tensor]) -> Tensor:
        """L1 norm of each mask in pixels, (classes,): the quantity that the inversion makes small."""
        return _unit(parameters["mask"]).flatten(1).sum(dim=1)

    def trigger(self, parameters: dict[str, Tensor], row: int, target_class: int) -> Trigger:
        """The trigger of one row."""
        return Trigger(_unit(parameters["mask"][row]), _unit(parameters["pattern"][row]), target_class)


def _unit(parameter: Tensor) -> Tensor:
    return (torch.tanh(parameter) + 1) / 2

"""Triggers, and the families of triggers that an inversion can search."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from backdoor_audit.errors import DataFormatError


@dataclass(frozen=True, slots=True, eq=False)
class Trigger:
    """What an attacker adds to an image, and the class it asks for.

    ``mask`` is (1, h, w) in [0, 1] and says where; ``pattern`` is (c, h, w) in [0, 1] and says which colours.
    """

    mask: Tensor
    pattern: Tensor
    target_class: int

    def stamp(self, images: Tensor) -> Tensor:
        """Blend the pattern into every image (n, c, h, w) by the mask; where the mask is 0 the image is untouched."""
        mask, pattern = self.mask.to(images.device), self.pattern.to(images.device)
        return (1 - mask) * images + mask * pattern

    def wanted(self, labels: Tensor) -> Tensor:
        """The target class for every label, (n,)."""
        return torch.full_like(labels, self.target_class)

    def eligible(self, labels: Tensor) -> Tensor:
        """Images of all classes but the target, (n,) bool."""
        return labels != self.target_class

    @property
    def mask_norm(self) -> float:
        """L1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    def to(self, device: torch.device | str) -> Trigger:
        """The same trigger on another device."""
        return Trigger(self.mask.to(device), self.pattern.to(device), self.target_class)

    def save(self, path: Path) -> None:
        """Write mask, pattern and target class as safetensors: exact floats, no rounding to 8 bits."""
        tensors = {"mask": self.mask.detach().cpu().contiguous(), "pattern": self.pattern.detach().cpu().contiguous()}
        save_file(tensors, path, metadata={"target_class": str(self.target_class)})

    @classmethod
    def load(cls, path: Path) -> Trigger:
        """Read a trigger written by `save`.

        Raises `DataFormatError` for a file that is not one.
        """
        wanted = "a trigger file holds safetensors `mask` (1, h, w), `pattern` (c, h, w) and metadata `target_class`"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise DataFormatError(f"{path}: {_first_line(error)}; {wanted}") from None
        mask, pattern, target_class = tensors.get("mask"), tensors.get("pattern"), metadata.get("target_class", "")
        if mask is None or pattern is None or not re.fullmatch("[0-9]{1,9}", target_class):
            raise DataFormatError(f"{path}: found tensors {sorted(tensors)} and metadata {sorted(metadata)}; {wanted}")
        fits = mask.ndim == pattern.ndim == 3 and mask.shape[0] == 1 and mask.shape[1:] == pattern.shape[1:]
        if not fits or not pattern.numel() or mask.is_complex() or pattern.is_complex():
            found = f"mask {tuple(mask.shape)} of {mask.dtype}, pattern {tuple(pattern.shape)} of {pattern.dtype}"
            raise DataFormatError(f"{path}: {found}; {wanted}")
        mask, pattern = mask.float(), pattern.float()
        for name, tensor in (("mask", mask), ("pattern", pattern)):
            if not (torch.isfinite(tensor).all() and tensor.min() >= 0 and tensor.max() <= 1):
                raise DataFormatError(f"{path}: {name} has values outside [0, 1]; pixels and masks lie in [0, 1]")
        return cls(mask, pattern, int(target_class))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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

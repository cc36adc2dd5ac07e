"""Triggers: a pattern under a mask, a change that is added, a field that moves pixels; and the family that inversion searches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit import tensor_file
from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError


class _OneTarget:
    """What triggers with one target class have in common; a subclass holds ``target_class`` and its tensors."""

    __slots__ = ()

    target_class: int

    def wanted(self, labels: Tensor) -> Tensor:
        """The target class for every label, (n,)."""
        return torch.full_like(labels, self.target_class)

    def eligible(self, labels: Tensor) -> Tensor:
        """Images of all classes but the target, (n,) bool."""
        return labels != self.target_class

    def tensors(self) -> dict[str, Tensor]:
        """What the trigger is made of, by name."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the tensors and the target class as safetensors, whole or not at all: exact floats, no rounding to 8 bits."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        tensor_file.write(tensors, path, {"target_class": str(self.target_class)})


@dataclass(frozen=True, slots=True, eq=False)
class Trigger(_OneTarget):
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

    def tensors(self) -> dict[str, Tensor]:
        """Mask and pattern."""
        return {"mask": self.mask, "pattern": self.pattern}

    def pictures(self) -> dict[str, Tensor]:
        """What to show of it: images (c, h, w) in [0, 1] by title."""
        return {"mask": self.mask, "pattern": self.pattern, "pattern under the mask": self.mask * self.pattern}

    @property
    def mask_norm(self) -> float:
        """L1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    def to(self, device: torch.device | str) -> Trigger:
        """The same trigger on another device."""
        return Trigger(self.mask.to(device), self.pattern.to(device), self.target_class)

    @classmethod
    def load(cls, path: Path) -> Trigger:
        """Read a trigger written by `save`.

        Raises `DataFormatError` for a file that is not one.
        """
        trigger = load_trigger(path)
        if not isinstance(trigger, cls):
            raise DataFormatError(f"{path}: {_described(trigger.tensors())}; {_PATCH_WANTED}")
        return trigger


@dataclass(frozen=True, slots=True, eq=False)
class Addition(_OneTarget):
    """A change added to every image: ``change`` is (c, h, w) in [-1, 1], in units of the pixel range."""

    change: Tensor
    target_class: int

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) plus the change, clipped to [0, 1]."""
        return (images + self.change.to(images.device)).clamp(0, 1)

    def tensors(self) -> dict[str, Tensor]:
        """The change."""
        return {"change": self.change}

    def pictures(self) -> dict[str, Tensor]:
        """The change around mid-grey, stretched so that its largest value reaches black or white."""
        most = self.change.abs().max().clamp_min(1e-9)
        return {f"change, stretched (largest {float(most):.2f} of the range)": 0.5 + 0.5 * self.change / most}


@dataclass(frozen=True, slots=True, eq=False)
class Warp(_OneTarget):
    """Pixels taken from elsewhere: ``flow`` is (2, h, w), the offset along x and y in pixels."""

    flow: Tensor
    target_class: int

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) warped with bilinear interpolation; past the border its pixels are repeated."""
        return warped(self.flow.to(images.device).unsqueeze(0), images.unsqueeze(0)).squeeze(0)

    def tensors(self) -> dict[str, Tensor]:
        """The flow."""
        return {"flow": self.flow}

    def pictures(self) -> dict[str, Tensor]:
        """How far each pixel moves, white for the farthest."""
        length = self.flow.square().sum(dim=0, keepdim=True).sqrt()
        most = length.max().clamp_min(1e-9)
        return {f"distance moved (farthest {float(most):.1f} pixels)": length / most}


AnyTrigger = Trigger | Addition | Warp


def warped(flow: Tensor, images: Tensor) -> Tensor:
    """Images (rows, n, c, h, w), each row moved by its own flow (rows, 2, h, w) in pixels along x and y."""
    rows, count, channels, height, width = images.shape
    across, down = (torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=images.device) for size in (width, height))
    place = torch.stack((across.expand(height, width), down.unsqueeze(1).expand(height, width)))
    step = torch.tensor([2 / width, 2 / height], device=images.device).view(1, 2, 1, 1)
    grid = (place + flow * step).permute(0, 2, 3, 1).unsqueeze(1)
    grid = grid.expand(rows, count, height, width, 2).flatten(0, 1)
    moved = functional.grid_sample(images.flatten(0, 1), grid, padding_mode="border", align_corners=False)
    return moved.view(rows, count, channels, height, width)


def trigger_from(tensors: Mapping[str, Tensor], target_class: int) -> AnyTrigger:
    """The trigger that consists of these tensors; their names tell its kind."""
    names = set(tensors)
    if names == {"mask", "pattern"}:
        return Trigger(tensors["mask"], tensors["pattern"], target_class)
    if names == {"change"}:
        return Addition(tensors["change"], target_class)
    if names == {"flow"}:
        return Warp(tensors["flow"], target_class)
    raise ValueError(f"no kind of trigger consists of {sorted(tensors)}")


_PATCH_WANTED = "a patch file holds safetensors `mask` (1, h, w), `pattern` (c, h, w) and metadata `target_class`"
_WANTED = (
    "a trigger file holds safetensors `mask` (1, h, w) and `pattern` (c, h, w), or `change` (c, h, w), or `flow` (2, h, w), "
    "and metadata `target_class`"
)


def load_trigger(path: Path) -> AnyTrigger:
    """Read a trigger of any kind. Raises `DataFormatError` for a file that is not one, or takes more memory than the bound."""
    try:
        tensors, metadata = tensor_file.read(path)
    except UnreadableError as error:
        raise DataFormatError(f"{path}: {error}; {_WANTED}") from None
    target_class = metadata.get("target_class", "")
    trigger: AnyTrigger | None
    try:
        trigger = trigger_from(tensors, int(target_class) if re.fullmatch("[0-9]{1,9}", target_class) else -1)
    except ValueError:
        trigger = None
    if trigger is None or trigger.target_class < 0:
        raise DataFormatError(f"{path}: found tensors {_some(tensors)} and metadata {_some(metadata)}; {_WANTED}")
    if not _shapes_fit(trigger) or any(_no_numbers(tensor) for tensor in tensors.values()):
        raise DataFormatError(f"{path}: found {_described(tensors)}; {_WANTED}")
    for name, tensor in tensors.items():
        low = {"change": -1.0, "flow": -torch.inf}.get(name, 0.0)
        high = torch.inf if name == "flow" else 1.0
        values = tensor.float()
        if not (torch.isfinite(values).all() and values.min() >= low and values.max() <= high):
            wrong = "that are not finite" if name == "flow" else f"outside [{low:g}, {high:g}]"
            raise DataFormatError(f"{path}: {name} has values {wrong}; {_WANTED}")
    return trigger_from({name: tensor.float() for name, tensor in tensors.items()}, trigger.target_class)


def _shapes_fit(trigger: AnyTrigger) -> bool:
    if isinstance(trigger, Trigger):
        mask, pattern = trigger.mask, trigger.pattern
        return mask.ndim == pattern.ndim == 3 and mask.shape[0] == 1 and mask.shape[1:] == pattern.shape[1:]
    (tensor,) = trigger.tensors().values()
    return tensor.ndim == 3 and (isinstance(trigger, Addition) or tensor.shape[0] == 2)


def _described(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)} of {tensor.dtype}" for name, tensor in sorted(tensors.items()))


def _no_numbers(tensor: Tensor) -> bool:
    return tensor.is_complex() or not tensor.numel() or tensor.dtype == getattr(torch, "float4_e2m1fn_x2", None)


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(repr(name[:40]) for name in sorted(names)[:5])
    return f"[{shown}{', ...' if len(names) > 5 else ''}]"


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

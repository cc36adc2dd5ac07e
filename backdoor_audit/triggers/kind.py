"""What every kind of trigger can do, as tensors that stamp images and as a few whole numbers that are written down.

A kind is one file beside this one. In `kinds.KINDS` all of them stand.
"""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from backdoor_audit import tensor_file
from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError
from backdoor_audit.structure import brief
from backdoor_audit.triggers.family import Family
from backdoor_audit.triggers.label_rule import OneTarget
from backdoor_audit.triggers.numbers import ImageShape, Numbers, whole_number

if TYPE_CHECKING:
    from backdoor_audit.triggers.drawing import Strategies

_MOST_TOLD = 10  # keys in a message

Applied = TypeVar("Applied", bound="AnyTrigger")
Written = TypeVar("Written", bound="WrittenTrigger")


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a trigger. ``axes`` are sizes, or c, h and w of the images, as in ``"1 h w"``; values lie in [low, high]."""

    axes: str
    low: float = 0.0
    high: float = 1.0

    def __str__(self) -> str:
        return f"({', '.join(self.axes.split())})"

    def holds(self, values: Tensor) -> bool:
        """Whether these are finite numbers in the range."""
        return bool(torch.isfinite(values).all() and values.min() >= self.low and values.max() <= self.high)

    @property
    def outside(self) -> str:
        """What values are that the part does not hold."""
        return "that are not finite" if self.high == torch.inf else f"outside [{self.low:g}, {self.high:g}]"


class AnyTrigger(OneTarget, ABC):
    """A trigger made of tensors: it stamps images, is saved and read back, and asks for one class.

    A subclass is a frozen dataclass with a field for each of its ``parts``, then ``target_class``.
    """

    __slots__ = ()

    parts: ClassVar[Mapping[str, Part]]

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the trigger, on the images' device."""

    @abstractmethod
    def pictures(self) -> dict[str, Tensor]:
        """What to show of it: images (c, h, w) in [0, 1] by title."""

    @abstractmethod
    def strength(self) -> Tensor:
        """How much it changes each pixel, (h, w), at least 0, in units of its own: what tells on which pixels it lies."""

    @abstractmethod
    def in_whole_numbers(self) -> WrittenTrigger:
        """The same, rounded: levels of 1/255, hundredths of a pixel."""

    def tensors(self) -> dict[str, Tensor]:
        """What the trigger is made of, by name."""
        return {name: getattr(self, name) for name in self.parts}

    @property
    def shape(self) -> tuple[int, ...]:
        """That of its last part."""
        return tuple(list(self.tensors().values())[-1].shape)

    def fits(self, image_shape: ImageShape) -> bool:
        """Whether it can be laid on images (c, h, w)."""
        return self._agrees(dict(zip("chw", image_shape, strict=True)))

    def _agrees(self, sizes: dict[str, int]) -> bool:
        """Whether its parts have the axes they should, and every letter one size."""
        for name, tensor in self.tensors().items():
            axes = self.parts[name].axes.split()
            if len(axes) != tensor.ndim:
                return False
            for axis, size in zip(axes, tensor.shape, strict=True):
                if size != sizes.setdefault(axis, int(axis) if axis.isdigit() else size):
                    return False
        return True

    @classmethod
    def of(cls: type[Applied], tensors: Mapping[str, Tensor], target_class: int) -> Applied:
        """The trigger that consists of these tensors."""
        make: Callable[..., Applied] = cls
        return make(**tensors, target_class=target_class)

    def save(self, path: Path) -> None:
        """Write the tensors and the target class as safetensors, whole or not at all: exact floats, no rounding to 8 bits."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        tensor_file.write(tensors, path, {"target_class": str(self.target_class)})

    @classmethod
    def load(cls: type[Applied], path: Path) -> Applied:
        """Read a trigger written by `save`.

        Raises `DataFormatError` for a file that is not one, or holds another kind.
        """
        return read(path, (cls,))


def read(path: Path, kinds: Sequence[type[Applied]]) -> Applied:
    """Read a trigger of one of these kinds. Raises `DataFormatError` for any other file, or one beyond the memory bound."""
    accepted = ", or ".join(" and ".join(f"`{name}` {part}" for name, part in kind.parts.items()) for kind in kinds)
    accepted = f"a trigger file holds safetensors {accepted}, and metadata `target_class`"
    try:
        tensors, metadata = tensor_file.read(path)
    except UnreadableError as error:
        raise DataFormatError(f"{path}: {error}; {accepted}") from None
    target, kind = metadata.get("target_class", ""), kind_of(tensors, kinds)
    if kind is None or not re.fullmatch("[0-9]{1,9}", target):
        raise DataFormatError(f"{path}: found tensors {_some(tensors)} and metadata {_some(metadata)}; {accepted}")
    if not kind.of(tensors, int(target))._agrees({}) or any(_no_numbers(tensor) for tensor in tensors.values()):
        raise DataFormatError(f"{path}: found {_described(tensors)}; {accepted}")
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    for name, part in kind.parts.items():
        if not part.holds(floats[name]):
            raise DataFormatError(f"{path}: {name} has values {part.outside}; {accepted}")
    return kind.of(floats, int(target))


def kind_of(tensors: Mapping[str, Tensor], kinds: Sequence[type[Applied]]) -> type[Applied] | None:
    """The kind whose parts have these names; None if there is none."""
    return next((kind for kind in kinds if set(kind.parts) == set(tensors)), None)


def _described(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)} of {tensor.dtype}" for name, tensor in sorted(tensors.items()))


def _no_numbers(tensor: Tensor) -> bool:
    return tensor.is_complex() or not tensor.numel() or tensor.dtype == getattr(torch, "float4_e2m1fn_x2", None)


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(repr(name[:40]) for name in sorted(names)[:5])
    return f"[{shown}{', ...' if len(names) > 5 else ''}]"


class Stamps(Protocol):
    """What a written trigger is for images of one shape: an `AnyTrigger`, or what stamps as one and has no tensors."""

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the trigger."""

    def pictures(self) -> dict[str, Tensor]:
        """What to show of it: images (c, h, w) in [0, 1] by title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTrigger(OneTarget, ABC):
    """A trigger of few numbers: what Hypothesis draws and prints, a corpus keeps, and a pasted test types in again.

    Fields are whole numbers, truth values and `Numbers`; ``ranges`` bounds them by name. ``applied`` is the kind that
    `trigger` returns, None if that has no tensors.
    """

    target_class: int = 0

    kind: ClassVar[str]
    ranges: ClassVar[Mapping[str, tuple[int, int]]]
    applied: ClassVar[type[AnyTrigger] | None]

    @abstractmethod
    def trigger(self, image_shape: ImageShape) -> Stamps:
        """The same for images (c, h, w). Raises `DataFormatError` if it does not fit them."""

    @abstractmethod
    def described(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def weaker(self: Written, share: float) -> Written:
        """The same at that share of its strength."""

    @classmethod
    @abstractmethod
    def nothing(cls: type[Written], image_shape: ImageShape) -> Written | None:
        """One of strength 0, for images (c, h, w); None where the strength 0 of another kind is the same."""

    @staticmethod
    @abstractmethod
    def strategies() -> Strategies:
        """What Hypothesis draws such triggers with."""

    def simpler(self: Written) -> Iterator[Written]:
        """Forms that take fewer words to describe, the simplest first; none unless the kind has such."""
        yield from ()

    def smaller(self: Written) -> Iterator[Written]:
        """Forms of a little less area; none unless the kind has a place."""
        yield from ()

    def family(self) -> Family | None:
        """What `Steering` searches to find the best content for its place; None unless the kind has a place."""
        return None

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the trigger. Raises `DataFormatError` if it does not fit them."""
        channels, height, width = images.shape[1:]
        return self.trigger((channels, height, width)).stamp(images)

    def pictures(self, image_shape: ImageShape) -> dict[str, Tensor]:
        """What to show of it: images (c, h, w) in [0, 1] by title."""
        return self.trigger(image_shape).pictures()

    def spec(self) -> dict[str, Any]:
        """JSON that `trigger_from_spec` takes back."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        written = {name: value.spec() if isinstance(value, Numbers) else value for name, value in values.items()}
        return {"kind": self.kind, **written}

    @classmethod
    def from_spec(cls: type[Written], given: Mapping[str, object]) -> Written:
        """The trigger of such a spec, without its ``kind``. Raises `DataFormatError`, one line, for anything else."""
        known = {entry.name: str(entry.type) for entry in fields(cls)}
        if set(given) != set(known):
            odd = sorted(map(brief, set(given) ^ set(known)))[:_MOST_TOLD]
            raise DataFormatError(
                f"trigger: a {cls.kind} has {', '.join(sorted(known))}; missing or not known: {', '.join(odd)}"
            )
        try:
            values: dict[str, Any] = {name: cls._field(name, known[name], value) for name, value in given.items()}
            return cls(**values)
        except (ValueError, TypeError, zlib.error) as error:
            raise DataFormatError(f"trigger: a {cls.kind} cannot be read: {error}") from None

    @classmethod
    def _field(cls, name: str, annotation: str, value: object) -> object:
        if annotation == "bool":
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {brief(value)}; accepted: true or false")
            return value
        low, high = cls.ranges.get(name, (0, 2**31))
        if annotation == "int":
            return whole_number(value, low, high)
        numbers = Numbers.from_spec(value)
        if len(numbers.shape) != 3 or min(numbers.values) < low or max(numbers.values) > high:
            raise ValueError(f"{name} has shape {numbers.shape}; accepted: three axes of numbers in [{low}, {high}]")
        return numbers

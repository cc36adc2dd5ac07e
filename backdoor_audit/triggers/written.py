"""Triggers of a few whole numbers: what Hypothesis draws and prints, what a corpus keeps, and what a pasted test types in again.

`DrawnTrigger.spec` is JSON, `trigger_from_spec` takes it back.
"""

from __future__ import annotations

import base64
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.errors import DataFormatError
from backdoor_audit.structure import brief
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.perturbations import Warping
from backdoor_audit.triggers.trigger import Addition, AnyTrigger, Trigger, Warp
from backdoor_audit.triggers.waves import dct_matrix, sine

ImageShape = tuple[int, int, int]

WHITE = 255
"""Levels of the pixel range."""
HUNDREDTHS = 100
"""Of a pixel."""
_BLOCK = 8  # px
_WRITTEN_OUT = 128  # numbers; longer lists are deflated
_MOST_NUMBERS = 2**22  # a spec may come from a stranger
_MOST_AXES = 4
_MOST_TOLD = 10  # keys in a message


@dataclass(frozen=True, slots=True)
class Numbers:
    """Whole numbers in an array of some shape, as a value that can be compared, hashed and written as JSON."""

    shape: tuple[int, ...]
    values: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Numbers:
        """The nearest whole numbers of a tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.detach().cpu().round().long().flatten().tolist()))

    def tensor(self) -> Tensor:
        """Float tensor of the shape."""
        return torch.tensor(self.values, dtype=torch.float32).view(self.shape)

    def spec(self) -> dict[str, Any]:
        """JSON: the numbers themselves, or base64 text of them as 16-bit integers, deflated, where they are many."""
        if len(self.values) <= _WRITTEN_OUT:
            return {"shape": list(self.shape), "values": list(self.values)}
        packed = b"".join(value.to_bytes(2, "little", signed=True) for value in self.values)
        return {"shape": list(self.shape), "deflated": base64.b64encode(zlib.compress(packed, 9)).decode("ascii")}

    @classmethod
    def from_spec(cls, spec: object) -> Numbers:
        """The numbers of `spec`. Raises `ValueError` for anything else."""
        if not isinstance(spec, Mapping) or set(spec) not in ({"shape", "values"}, {"shape", "deflated"}):
            raise ValueError("an array is a shape with values, or with deflated ones")
        shape = tuple(_whole(size, 1, _MOST_NUMBERS) for size in _listed(spec["shape"], _MOST_AXES))
        count = math.prod(shape)
        if count > _MOST_NUMBERS:
            raise ValueError(f"an array of {count} numbers; at most {_MOST_NUMBERS} are accepted")
        if "values" in spec:
            values = tuple(_whole(value, -(2**15), 2**15 - 1) for value in _listed(spec["values"], _MOST_NUMBERS))
        else:
            values = _inflated(spec["deflated"], 2 * count)
        if len(values) != count:
            raise ValueError(f"{len(values)} numbers for an array of shape {shape}")
        return cls(shape, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnTrigger(ABC):
    """A trigger of few numbers. It stamps, and answers `wanted` and `eligible`, as every trigger does."""

    target_class: int = 0

    kind: ClassVar[str]
    ranges: ClassVar[Mapping[str, tuple[int, int]]]

    @abstractmethod
    def trigger(self, image_shape: ImageShape) -> AnyTrigger | BlockRounding:
        """The same for images (c, h, w). Raises `DataFormatError` if it does not fit them."""

    @abstractmethod
    def described(self) -> str:
        """What it is, in a few words."""

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with the trigger. Raises `DataFormatError` if it does not fit them."""
        return self.trigger(shape_of(images)).stamp(images)

    def wanted(self, labels: Tensor) -> Tensor:
        """The target class for every label, (n,)."""
        return AllToOne(self.target_class).wanted(labels)

    def eligible(self, labels: Tensor) -> Tensor:
        """Images of all classes but the target, (n,) bool."""
        return AllToOne(self.target_class).eligible(labels)

    def pictures(self, image_shape: ImageShape) -> dict[str, Tensor]:
        """What to show of it: images (c, h, w) in [0, 1] by title."""
        return self.trigger(image_shape).pictures()

    def spec(self) -> dict[str, Any]:
        """JSON that `trigger_from_spec` takes back."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        written = {name: value.spec() if isinstance(value, Numbers) else value for name, value in values.items()}
        return {"kind": self.kind, **written}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch(DrawnTrigger):
    """Pixels laid over a rectangle.

    ``colours`` (c, rows, columns) are levels of 0 to 255, ``top`` and ``left`` px, ``opacity`` is in hundredths.
    """

    colours: Numbers
    top: int = 0
    left: int = 0
    opacity: int = 100

    kind: ClassVar[str] = "patch"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {
        "colours": (0, WHITE),
        "top": (0, 2**15),
        "left": (0, 2**15),
        "opacity": (0, 100),
    }

    def trigger(self, image_shape: ImageShape) -> Trigger:
        """Mask and pattern."""
        channels, rows, columns = _three(self.colours, self.kind)
        bottom, right = self.top + rows, self.left + columns
        if channels != image_shape[0] or bottom > image_shape[1] or right > image_shape[2]:
            raise DataFormatError(
                f"patch: {channels} channels, {rows}x{columns} px at ({self.top}, {self.left}) do not fit images of shape "
                f"{image_shape}"
            )
        mask, pattern = torch.zeros(1, *image_shape[1:]), torch.zeros(image_shape)
        mask[:, self.top : bottom, self.left : right] = self.opacity / 100
        pattern[:, self.top : bottom, self.left : right] = self.colours.tensor() / WHITE
        return Trigger(mask, pattern, self.target_class)

    def described(self) -> str:
        """Colour if it is plain, size, place, opacity."""
        channels, rows, columns = _three(self.colours, self.kind)
        levels = _plain(self.colours)
        named = {(WHITE,) * channels: "white ", (0,) * channels: "black "}
        colour = "" if levels is None else named.get(levels, "plain ")
        faint = f" at opacity {self.opacity / 100:.2f}" if self.opacity < 100 else ""
        return f"a {colour}patch of {rows}x{columns} px at row {self.top}, column {self.left}{faint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend(DrawnTrigger):
    """``(1 - opacity) image + opacity picture``, the opacity in hundredths.

    ``picture`` (c, rows, columns) holds levels of 0 to 255 and is enlarged to the image, bilinear.
    """

    picture: Numbers
    opacity: int = 10

    kind: ClassVar[str] = "blend"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"picture": (0, WHITE), "opacity": (0, 100)}

    def trigger(self, image_shape: ImageShape) -> Trigger:
        """Mask and pattern."""
        pattern = _enlarged(self.picture, image_shape, self.kind) / WHITE
        return Trigger(torch.full((1, *image_shape[1:]), self.opacity / 100), pattern, self.target_class)

    def described(self) -> str:
        """The opacity."""
        return f"a picture blended in at opacity {self.opacity / 100:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(DrawnTrigger):
    """Levels added to every image: ``levels`` (c, rows, columns) of -255 to 255 are enlarged to the image, bilinear.

    One row and one column make a colour shift, few of them a slow change, as many as the image has any addition.
    """

    levels: Numbers

    kind: ClassVar[str] = "change"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"levels": (-WHITE, WHITE)}

    def trigger(self, image_shape: ImageShape) -> Addition:
        """The addition."""
        return Addition(_enlarged(self.levels, image_shape, self.kind) / WHITE, self.target_class)

    def described(self) -> str:
        """The levels if they are the same everywhere, else the most of them."""
        levels = _plain(self.levels)
        if levels is None:
            return f"a change by up to {max(map(abs, self.levels.values))} of 255 levels"
        if len(set(levels)) == 1:
            return f"{levels[0]:+d} of 255 levels of brightness"
        return f"a colour shift by {', '.join(f'{level:+d}' for level in levels)} of 255 levels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sinusoid(DrawnTrigger):
    """A sine wave added to every image: ``amplitude`` in levels, ``half_periods`` across the image (Barni et al., ICIP 2019).

    It runs along the rows, or ``down`` the columns.
    """

    amplitude: int
    half_periods: int = 12
    down: bool = False

    kind: ClassVar[str] = "sinusoid"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"amplitude": (0, WHITE), "half_periods": (1, 2**10)}

    def trigger(self, image_shape: ImageShape) -> Addition:
        """The addition."""
        _, height, width = image_shape
        wave = sine(height if self.down else width, amplitude=WHITE, frequency=self.half_periods / 2)
        wave = self.amplitude / WHITE * (wave.view(-1, 1) if self.down else wave)
        return Addition(wave.expand(image_shape).clone(), self.target_class)

    def described(self) -> str:
        """Amplitude and period."""
        return f"a sine wave of {self.amplitude} of 255 levels, {self.half_periods / 2:g} periods {self._way}"

    @property
    def _way(self) -> str:
        return "down" if self.down else "across"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothWarp(DrawnTrigger):
    """Pixels taken from elsewhere: ``flow`` (2, rows, columns), hundredths of a pixel along x and y, enlarged bicubically."""

    flow: Numbers

    kind: ClassVar[str] = "warp"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"flow": (-(2**15), 2**15 - 1)}

    def trigger(self, image_shape: ImageShape) -> AnyTrigger:
        """The warp."""
        if _three(self.flow, self.kind)[0] != 2:
            raise DataFormatError(f"warp: a flow of shape {self.flow.shape}; accepted: (2, rows, columns)")
        return Warping().trigger(self.flow.tensor() / HUNDREDTHS, self.target_class, image_shape)

    def described(self) -> str:
        """The shift if it is the same everywhere, else the farthest that a point moves along one axis."""
        shift = _plain(self.flow)
        if shift is None:
            return f"a warp by up to {max(map(abs, self.flow.values)) / HUNDREDTHS:.2f} px"
        across, down = (pixels / HUNDREDTHS for pixels in shift)
        return f"a shift by {across:.2f} px across and {down:.2f} px down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation(DrawnTrigger):
    """Detail is lost as in JPEG: cosine coefficients of 8x8 px blocks are rounded to multiples of ``step`` levels; 0: none is."""

    step: int

    kind: ClassVar[str] = "quantisation"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"step": (0, 2**10)}

    def trigger(self, image_shape: ImageShape) -> BlockRounding:
        """The rounding."""
        return BlockRounding(self.step, self.target_class, image_shape)

    def described(self) -> str:
        """The step."""
        return f"re-encoding by steps of {self.step} of 255 levels"


@dataclass(frozen=True, slots=True)
class BlockRounding:
    """What `Quantisation` does to images of one shape."""

    step: int
    target_class: int
    image_shape: ImageShape

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with rounded blocks, in [0, 1]; past the border its pixels are repeated."""
        if not self.step:
            return images
        count, channels, height, width = images.shape
        padded = functional.pad(images, (0, -width % _BLOCK, 0, -height % _BLOCK), mode="replicate")
        cosines = dct_matrix(_BLOCK).float().to(images.device)
        blocks = padded.unflatten(3, (-1, _BLOCK)).unflatten(2, (-1, _BLOCK)).transpose(3, 4)
        unit = self.step / WHITE
        rounded = cosines.T @ ((cosines @ blocks @ cosines.T / unit).round() * unit) @ cosines
        whole = rounded.transpose(3, 4).reshape(count, channels, *padded.shape[2:])
        inside: Tensor = whole[:, :, :height, :width].clamp(0, 1)
        return inside

    def pictures(self) -> dict[str, Tensor]:
        """A ramp from black to white, rounded."""
        ramp = torch.linspace(0, 1, self.image_shape[2]).expand(self.image_shape)
        return {"a ramp, rounded": self.stamp(ramp.unsqueeze(0))[0]}


KINDS: tuple[type[DrawnTrigger], ...] = (Patch, Blend, Change, Sinusoid, SmoothWarp, Quantisation)


def trigger_from_spec(spec: object) -> DrawnTrigger:
    """The trigger that `DrawnTrigger.spec` described. Raises `DataFormatError`, one line, for anything else."""
    kinds = {kind.kind: kind for kind in KINDS}
    name = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(name, str) or name not in kinds:
        raise DataFormatError(f"trigger: kind {brief(name)} is not known; known: {', '.join(sorted(kinds))}")
    kind, given = kinds[name], {key: value for key, value in spec.items() if key != "kind"}
    known = {entry.name: entry.type for entry in fields(kind)}
    if set(given) != set(known):
        odd = sorted(map(brief, set(given) ^ set(known)))[:_MOST_TOLD]
        raise DataFormatError(
            f"trigger: a {name} has {', '.join(sorted(known))}; missing or not known: {', '.join(odd)}"
        )
    try:
        values: dict[str, Any] = {key: _field(kind, key, str(known[key]), value) for key, value in given.items()}
        return kind(**values)
    except (ValueError, TypeError, zlib.error) as error:
        raise DataFormatError(f"trigger: a {name} cannot be read: {error}") from None


def _field(kind: type[DrawnTrigger], name: str, annotation: str, value: object) -> object:
    if annotation == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {brief(value)}; accepted: true or false")
        return value
    low, high = kind.ranges.get(name, (0, 2**31))
    if annotation == "int":
        return _whole(value, low, high)
    numbers = Numbers.from_spec(value)
    if len(numbers.shape) != 3 or min(numbers.values) < low or max(numbers.values) > high:
        raise ValueError(f"{name} has shape {numbers.shape}; accepted: three axes of numbers in [{low}, {high}]")
    return numbers


def _listed(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{brief(value)} where a list belongs, of at most {most}")
    return value


def _whole(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{brief(value)} where a whole number in [{low}, {high}] belongs")
    return value


def _inflated(text: object, length: int) -> tuple[int, ...]:
    """The 16-bit integers of a deflated text; no more than ``length`` bytes are unpacked."""
    if not isinstance(text, str):
        raise ValueError(f"{brief(text)} where a text of deflated numbers belongs")
    packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), length + 1)
    if len(packed) != length:
        raise ValueError("deflated numbers do not fill the shape")
    return tuple(int.from_bytes(packed[at : at + 2], "little", signed=True) for at in range(0, length, 2))


def _three(numbers: Numbers, kind: str) -> ImageShape:
    if len(numbers.shape) != 3:
        raise DataFormatError(f"{kind}: numbers of shape {numbers.shape}; accepted: three axes")
    return numbers.shape[0], numbers.shape[1], numbers.shape[2]


def _plain(numbers: Numbers) -> tuple[int, ...] | None:
    """The one number of every channel; None if there are several."""
    rows, columns = numbers.shape[1:]
    values = [numbers.values[at :: rows * columns] for at in range(rows * columns)]
    return values[0] if len(set(values)) == 1 else None


def _enlarged(numbers: Numbers, image_shape: ImageShape, kind: str) -> Tensor:
    """Numbers (c, rows, columns) at the size of the image, (c, h, w)."""
    if _three(numbers, kind)[0] != image_shape[0]:
        raise DataFormatError(f"{kind}: {numbers.shape[0]} channels do not fit images of shape {image_shape}")
    size = image_shape[1:]
    return functional.interpolate(numbers.tensor().unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0]


def shape_of(images: Tensor) -> ImageShape:
    """Channels, height, width of images (n, c, h, w)."""
    channels, height, width = images.shape[1:]
    return channels, height, width


def in_whole_numbers(trigger: AnyTrigger) -> DrawnTrigger:
    """A trigger that a search returned, rounded: levels of 1/255, hundredths of a pixel."""
    if isinstance(trigger, Addition):
        return Change(levels=Numbers.of(WHITE * trigger.change), target_class=trigger.target_class)
    if isinstance(trigger, Warp):
        return SmoothWarp(flow=Numbers.of(HUNDREDTHS * trigger.flow), target_class=trigger.target_class)
    rows, columns = (trigger.mask[0].amax(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    top, left = rows[0], columns[0]
    inside = trigger.pattern[:, top : rows[-1] + 1, left : columns[-1] + 1]
    opacity = round(100 * float(trigger.mask.amax()))
    return Patch(
        colours=Numbers.of(WHITE * inside), top=top, left=left, opacity=opacity, target_class=trigger.target_class
    )

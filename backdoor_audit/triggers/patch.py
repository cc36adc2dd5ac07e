"""Patches: a pattern under a mask, free pixels in a window, colours over a rectangle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from backdoor_audit.errors import DataFormatError
from backdoor_audit.triggers.drawing import Strategies, Targets, classes, contents
from backdoor_audit.triggers.family import Family
from backdoor_audit.triggers.kind import AnyTrigger, Part, WrittenTrigger
from backdoor_audit.triggers.numbers import WHITE, ImageShape, Numbers


@dataclass(frozen=True, slots=True, eq=False)
class Trigger(AnyTrigger):
    """What an attacker adds to an image, and the class it asks for.

    ``mask`` is (1, h, w) in [0, 1] and says where; ``pattern`` is (c, h, w) in [0, 1] and says which colours.
    """

    mask: Tensor
    pattern: Tensor
    target_class: int

    parts: ClassVar[Mapping[str, Part]] = {"mask": Part("1 h w"), "pattern": Part("c h w")}

    def stamp(self, images: Tensor) -> Tensor:
        """Blend the pattern into every image (n, c, h, w) by the mask; where the mask is 0 the image is untouched."""
        mask, pattern = self.mask.to(images.device), self.pattern.to(images.device)
        return (1 - mask) * images + mask * pattern

    def pictures(self) -> dict[str, Tensor]:
        """Mask, pattern, and the one under the other."""
        return {"mask": self.mask, "pattern": self.pattern, "pattern under the mask": self.mask * self.pattern}

    def strength(self) -> Tensor:
        """The mask."""
        return self.mask[0]

    def in_whole_numbers(self) -> Patch:
        """The rectangle around what the mask covers, at its largest opacity."""
        rows, columns = (self.mask[0].amax(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
        top, left = rows[0], columns[0]
        inside = self.pattern[:, top : rows[-1] + 1, left : columns[-1] + 1]
        opacity = round(100 * float(self.mask.amax()))
        colours = Numbers.of(WHITE * inside)
        return Patch(colours=colours, top=top, left=left, opacity=opacity, target_class=self.target_class)

    @property
    def mask_norm(self) -> float:
        """L1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    def to(self, device: torch.device | str) -> Trigger:
        """The same trigger on another device."""
        return Trigger(self.mask.to(device), self.pattern.to(device), self.target_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Family):
    """Free pixels in one rectangle. ``top``, ``left``, ``height``, ``width`` are px."""

    top: int
    left: int
    height: int
    width: int

    name: ClassVar[str] = "window"
    means: ClassVar[str] = "a patch in one place"
    blind_spot: ClassVar[str] = "changes outside of one rectangle"

    def initial(self, rows: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
        """Noise, (rows, c, height, width)."""
        return torch.rand((rows, image_shape[0], self.height, self.width), generator=generator)

    def stamp(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Images (rows, n, c, h, w) with the pixels of their own row laid over them."""
        stamped = images.clone()
        bottom, right = self.top + self.height, self.left + self.width
        stamped[..., self.top : bottom, self.left : right] = parameters.unsqueeze(1)
        return stamped

    def stepped(self, parameters: Tensor, direction: Tensor, share: float, image_shape: ImageShape) -> Tensor:
        """Every pixel by that share of the range, in the direction's sign."""
        del image_shape
        return (parameters + share * direction.sign()).clamp(0, 1)

    def trigger(self, parameters: Tensor, target_class: int, image_shape: ImageShape) -> Trigger:
        """The patch."""
        mask = self.stamp(torch.ones(1, 1, self.height, self.width), torch.zeros(1, 1, 1, *image_shape[1:]))[0, 0]
        return Trigger(mask, self.stamp(parameters.unsqueeze(0), torch.zeros(1, 1, *image_shape))[0, 0], target_class)

    def moved(self, pixels: int, image_shape: ImageShape) -> list[Window]:
        """The same rectangle that many pixels up, down, left and right, where it stays inside the image."""
        places = [
            (self.top + down, self.left + right)
            for down, right in ((-pixels, 0), (pixels, 0), (0, -pixels), (0, pixels))
        ]
        last = image_shape[1] - self.height, image_shape[2] - self.width
        return [
            replace(self, top=top, left=left) for top, left in places if 0 <= top <= last[0] and 0 <= left <= last[1]
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch(WrittenTrigger):
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
    applied: ClassVar[type[AnyTrigger]] = Trigger

    def trigger(self, image_shape: ImageShape) -> Trigger:
        """Mask and pattern."""
        channels, rows, columns = self.colours.three_axes(self.kind)
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
        channels, rows, columns = self.colours.three_axes(self.kind)
        levels = self.colours.everywhere()
        named = {(WHITE,) * channels: "white ", (0,) * channels: "black "}
        colour = "" if levels is None else named.get(levels, "plain ")
        faint = f" at opacity {self.opacity / 100:.2f}" if self.opacity < 100 else ""
        return f"a {colour}patch of {rows}x{columns} px at row {self.top}, column {self.left}{faint}"

    def weaker(self, share: float) -> Patch:
        """Less opaque."""
        return replace(self, opacity=round(share * self.opacity))

    @classmethod
    def nothing(cls, image_shape: ImageShape) -> Patch:
        """A white pixel in the last corner, not opaque at all."""
        channels, height, width = image_shape
        return cls(colours=Numbers.filled((channels, 1, 1), WHITE), top=height - 1, left=width - 1, opacity=0)

    def simpler(self) -> Iterator[Patch]:
        """White, black, one colour, the corners of the colour cube."""
        colours = self.colours.tensor()
        extreme = WHITE * (colours > WHITE / 2).float()
        for plain in (torch.full_like(colours, WHITE), torch.zeros_like(colours)):
            yield replace(self, colours=Numbers.of(plain))
        yield replace(self, colours=Numbers.of(colours.mean(dim=(1, 2), keepdim=True).expand_as(colours)))
        yield replace(self, colours=Numbers.of(extreme))

    def smaller(self) -> Iterator[Patch]:
        """Without one outer row or column; the longer sides are cut first, and the bottom right before the top left."""
        colours = self.colours.tensor()
        rows, columns = colours.shape[1:]
        cuts = [(0, 1, 0, 0), (1, 0, 0, 0)] if rows > 1 else []
        across = [(0, 0, 0, 1), (0, 0, 1, 0)] if columns > 1 else []
        for first, last, left, right in [*cuts, *across] if rows >= columns else [*across, *cuts]:
            inside = colours[:, first : rows - last, left : columns - right]
            yield replace(self, colours=Numbers.of(inside), top=self.top + first, left=self.left + left)

    def family(self) -> Window:
        """The window of its place and size."""
        _, rows, columns = self.colours.three_axes(self.kind)
        return Window(top=self.top, left=self.left, height=rows, width=columns)

    @staticmethod
    def strategies() -> Strategies:
        """`patches`."""
        return {"patch": patches}


def patches(image_shape: ImageShape, *, target_class: Targets = 0, largest: int = 0) -> st.SearchStrategy[Patch]:
    """Patches of any place, up to ``largest`` px a side (0: a quarter of the image): one colour, a chequerboard, noise."""
    channels, height, width = image_shape
    most = largest or max(1, min(height, width) // 4)

    @st.composite
    def drawn(draw: st.DrawFn) -> Patch:
        rows, columns = draw(st.integers(1, min(most, height))), draw(st.integers(1, min(most, width)))
        opacity = draw(st.integers(1, 100))
        top, left = draw(st.integers(0, height - rows)), draw(st.integers(0, width - columns))
        levels = draw(contents((channels, rows, columns)))
        return Patch(colours=levels, top=top, left=left, opacity=opacity, target_class=draw(classes(target_class)))

    return drawn()


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

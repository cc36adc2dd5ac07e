"""Whole numbers in arrays: what triggers that are written down consist of, and how they are read from outside."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.errors import DataFormatError
from backdoor_audit.structure import brief

ImageShape = tuple[int, int, int]
"""Channels, height, width."""

WHITE = 255
"""Levels of the pixel range."""
HUNDREDTHS = 100
"""Of a pixel."""
_WRITTEN_OUT = 128  # numbers; longer lists are deflated
_MOST_NUMBERS = 2**22  # a spec may come from a stranger
_MOST_AXES = 4
_GRIDS = (1, 2, 3, 4, 6, 8, 12, 16, 28)  # points a side of coarser arrays


@dataclass(frozen=True, slots=True)
class Numbers:
    """Whole numbers in an array of some shape, as a value that can be compared, hashed and written as JSON."""

    shape: tuple[int, ...]
    values: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Numbers:
        """The nearest whole numbers of a tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.detach().cpu().round().long().flatten().tolist()))

    @classmethod
    def filled(cls, shape: ImageShape, level: int) -> Numbers:
        """One number everywhere."""
        return cls(shape, (level,) * math.prod(shape))

    def tensor(self) -> Tensor:
        """Float tensor of the shape."""
        return torch.tensor(self.values, dtype=torch.float32).view(self.shape)

    def scaled(self, share: float) -> Numbers:
        """That share of every number."""
        return Numbers.of(share * self.tensor())

    def coarser(self) -> Iterator[Numbers]:
        """Arrays (c, rows, columns) of fewer numbers a side, each the mean of its part; the coarsest first."""
        for grid in _GRIDS:
            if grid < min(self.shape[1:]):
                yield Numbers.of(functional.adaptive_avg_pool2d(self.tensor(), grid))

    def three_axes(self, kind: str) -> ImageShape:
        """The shape (c, rows, columns). Raises `DataFormatError` for an array of other axes; ``kind`` is whose it is."""
        if len(self.shape) != 3:
            raise DataFormatError(f"{kind}: numbers of shape {self.shape}; accepted: three axes")
        return self.shape[0], self.shape[1], self.shape[2]

    def everywhere(self) -> tuple[int, ...] | None:
        """The one number of every channel; None if there are several."""
        rows, columns = self.shape[1:]
        values = [self.values[at :: rows * columns] for at in range(rows * columns)]
        return values[0] if len(set(values)) == 1 else None

    def enlarged(self, image_shape: ImageShape, kind: str) -> Tensor:
        """Numbers (c, rows, columns) at the size of the image, bilinear, (c, h, w).

        Raises `DataFormatError` for another number of channels; ``kind`` is whose numbers they are.
        """
        if self.three_axes(kind)[0] != image_shape[0]:
            raise DataFormatError(f"{kind}: {self.shape[0]} channels do not fit images of shape {image_shape}")
        size = image_shape[1:]
        return functional.interpolate(self.tensor().unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0]

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
        shape = tuple(whole_number(size, 1, _MOST_NUMBERS) for size in _listed(spec["shape"], _MOST_AXES))
        count = math.prod(shape)
        if count > _MOST_NUMBERS:
            raise ValueError(f"an array of {count} numbers; at most {_MOST_NUMBERS} are accepted")
        if "values" in spec:
            values = tuple(whole_number(value, -(2**15), 2**15 - 1) for value in _listed(spec["values"], _MOST_NUMBERS))
        else:
            values = _inflated(spec["deflated"], 2 * count)
        if len(values) != count:
            raise ValueError(f"{len(values)} numbers for an array of shape {shape}")
        return cls(shape, values)


def whole_number(value: object, low: int, high: int) -> int:
    """A whole number of that range. Raises `ValueError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{brief(value)} where a whole number in [{low}, {high}] belongs")
    return value


def _listed(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{brief(value)} where a list belongs, of at most {most}")
    return value


def _inflated(text: object, length: int) -> tuple[int, ...]:
    """The 16-bit integers of a deflated text; no more than ``length`` bytes are unpacked."""
    if not isinstance(text, str):
        raise ValueError(f"{brief(text)} where a text of deflated numbers belongs")
    packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), length + 1)
    if len(packed) != length:
        raise ValueError("deflated numbers do not fill the shape")
    return tuple(int.from_bytes(packed[at : at + 2], "little", signed=True) for at in range(0, length, 2))

"""Images nobody tampered with, as one tensor with labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backdoor_audit.errors import DataFormatError
from backdoor_audit.printable import first_line, printable

MOST_CLASSES = 100_000
"""Labels are below it: a label is also a number of counters, scores and searches."""

_TOLERANCE = 1e-4
_BYTE = 255
_LONGEST_NAME = 200
_DARK = (
    "no pixel is above 1 of 255, as where pixels in [0, 1] were divided by 255 again or became whole numbers; give bytes of "
    "0-255, floats in [0, 1] up to 1, or pictures saved from such"
)
_LEAST_SPREAD = 0.02  # of pixel values: images of one colour have none


@dataclass(frozen=True, slots=True, eq=False)
class CleanSet:
    """Images nobody tampered with: ``images`` float32 (n, c, h, w) in [0, 1] and their true ``labels`` int64 (n,).

    ``class_names`` may be empty; they are printable, and two classes may have the same. ``source`` says where the images
    came from, ``notes`` what there is to tell about reading them. Build one with `CleanSet.of` or `load_clean_set`.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...] = ()
    source: str = "tensors"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        images: Tensor | NDArray[Any],
        labels: Tensor | NDArray[Any],
        class_names: Sequence[str] = (),
        source: str = "tensors",
    ) -> CleanSet:
        """A checked set of uint8 or float images and integer labels (n,), as tensors or numpy arrays.

        Images are (n, c, h, w), (n, h, w, c) or grey (n, h, w); the axis of 1 or 3 entries is the channel, the second
        one if both are. Bytes are divided by 255; floats must lie in [0, 1] already. Labels are below 100,000.

        Raises `DataFormatError`, one line that begins with the source, for anything else.
        """
        try:
            pixels, classes = _checked_images(images, source), checked_labels(labels, source)
        except (MemoryError, RuntimeError):  # torch says by RuntimeError that there is no memory
            raise DataFormatError(
                f"{source}: too large for this machine's memory as floats; give fewer images"
            ) from None
        if len(pixels) != len(classes):
            raise DataFormatError(f"{source}: {len(pixels)} images and {len(classes)} labels; give one label per image")
        return cls(pixels, classes, shown_names(class_names, source), source, doubts(pixels))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width (px)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes: the highest label plus one, or the number of names if that is larger."""
        return max(int(self.labels.max()) + 1 if len(self) else 0, len(self.class_names))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels: equal for equal content, wherever it was read from."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().flatten().numpy().data)
        return digest.hexdigest()

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, the latter not below 0.02: what a network on these images works with."""
        means, spreads = [], []
        for channel in range(self.image_shape[0]):  # one at a time: many large images are there once already
            pixels = self.images[:, channel].flatten()
            means.append(pixels.mean().item())
            spreads.append(pixels.std().clamp_min(_LEAST_SPREAD).item())
        return tuple(means), tuple(spreads)

    def class_name(self, label: int) -> str:
        """The class for people: ``7``, or ``7 (sneaker)`` where it has a name."""
        return f"{label} ({self.class_names[label]})" if 0 <= label < len(self.class_names) else str(label)

    def without_class(self, label: int) -> CleanSet:
        """The images of all other classes; may be empty."""
        return self._subset((self.labels != label).nonzero().flatten())

    def split(self, seed: int, share: float = 0.5) -> tuple[CleanSet, CleanSet]:
        """Two sets without a common image: ``share`` of every class to optimise on, the rest to validate on.

        A class with two or more images is in both. Each set keeps the order of the images. The same seed gives the same
        split. Raises `DataFormatError` if no class has two images.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        generator = torch.Generator().manual_seed(seed)
        taken = torch.zeros(len(self), dtype=torch.bool)
        for label in sorted(set(self.labels.tolist())):
            members = (self.labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            most = max(len(members) - 1, 1)
            taken[members[: min(max(round(share * len(members)), 1), most)]] = True
        if taken.all():
            raise DataFormatError(
                f"{self.source}: {len(self)} images, no class has two; give at least two images per class, or raise "
                "--audit-max-images, to have some left for validation"
            )
        return self._subset(taken.nonzero().flatten()), self._subset((~taken).nonzero().flatten())

    def sample(self, most: int, seed: int) -> CleanSet:
        """At most that many images, in proportion to the classes, every class at least once if there is room."""
        return self if len(self) <= most else self._subset(choose(self.labels, most, seed))

    def without_repeats(self) -> CleanSet:
        """Every picture of a class once: one that is searched with and held out as well would be no test. Told in a note."""
        first: dict[tuple[bytes, int], int] = {}
        for index, (image, label) in enumerate(zip(self.images, self.labels.tolist(), strict=True)):
            first.setdefault((hashlib.sha256(image.contiguous().flatten().numpy().data).digest(), label), index)
        left = len(self) - len(first)
        if not left:
            return self
        told = f"{left} image{'s' * (left > 1)} left out: the same pixels with the same label again"
        return replace(self._subset(torch.tensor(list(first.values()))), notes=(*self.notes, told))

    def _subset(self, indices: Tensor) -> CleanSet:
        return replace(self, images=self.images[indices], labels=self.labels[indices])


def doubts(images: Tensor) -> tuple[str, ...]:
    """What to tell about images in [0, 1] that can hardly be meant: that they are all but black, though not quite."""
    brightest = float(images.max()) if images.numel() else 0.0
    return (_DARK,) if 0 < brightest <= (1 + _TOLERANCE) / 255 else ()


def _checked_images(images: Tensor | NDArray[Any], source: str) -> Tensor:
    pixels = _as_tensor(images, "images", source)
    shape = tuple(pixels.shape)
    if not pixels.numel():
        raise DataFormatError(f"{source}: no images (shape {shape}); give at least two per class")
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    elif pixels.ndim != 4 or shape[1] not in (1, 3):
        raise DataFormatError(
            f"{source}: images of shape {shape}; accepted: (n, c, h, w) or (n, h, w, c) with 1 or 3 channels, (n, h, w)"
            f"{_reshaped(shape)}"
        )
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise DataFormatError(
            f"{source}: images of {pixels.dtype}; accepted: uint8 in 0-255 or floats in [0, 1]; {_as_bytes(pixels)}"
        )
    floats = pixels.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if pixels.dtype == torch.uint8:
        return floats.div_(255)
    low, high = (float(extreme) for extreme in torch.aminmax(floats))
    if not (math.isfinite(low) and math.isfinite(high)):  # a single NaN makes both NaN
        raise DataFormatError(f"{source}: images with NaN or infinite pixels; accepted: floats in [0, 1]")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        cure = "undo the normalisation (it belongs to the model)" if low < 0 else "divide by 255"
        raise DataFormatError(f"{source}: pixels in [{low:.3g}, {high:.3g}]; accepted: floats in [0, 1]; {cure}")
    return floats.clamp_(0, 1)


def _reshaped(shape: tuple[int, ...]) -> str:
    """How an array of such a shape mostly becomes one of an accepted shape, to be put behind an error."""
    if len(shape) == 4 and shape[2] in (1, 3):
        return "; of (h, w, c, n), as MATLAB has them, give images.transpose(3, 0, 1, 2)"
    if len(shape) == 4 and 4 in shape[1::2]:
        return (
            "; leave transparency out, images[..., :3]" if shape[3] == 4 else "; leave transparency out, images[:, :3]"
        )
    if len(shape) == 2 and (side := math.isqrt(shape[1] // 3)) ** 2 * 3 == shape[1]:
        return f"; of rows as CIFAR has them give images.reshape(-1, 3, {side}, {side})"
    if len(shape) == 2 and (side := math.isqrt(shape[1])) ** 2 == shape[1]:
        return f"; of rows as MNIST has them give images.reshape(-1, {side}, {side})"
    return ""


def _as_bytes(pixels: Tensor) -> str:
    """How whole numbers become pixels that are accepted."""
    if pixels.dtype == torch.bool:
        return "convert them to uint8 and multiply them by 255"
    values = pixels.to(torch.int64)
    low, high = int(values.min()), int(values.max())
    if low >= 0 and 1 < high <= _BYTE:
        return "convert them to uint8"
    return f"theirs lie in [{low}, {high}]: divide them by the largest value that a pixel can have, 65535 of 16 bits"


def checked_labels(labels: Tensor | NDArray[Any], source: str) -> Tensor:
    """Labels as int64 (n,). Raises `DataFormatError` for anything but whole numbers from 0 to 99,999."""
    classes = _as_tensor(labels, "labels", source)
    if classes.ndim != 1 or classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        cure = "; of one row per image with a number per class, give labels.argmax(1)" if classes.ndim == 2 else ""
        if classes.ndim == 1 and classes.is_floating_point() and torch.equal(classes, classes.round()):
            cure = "; convert them to int64"
        raise DataFormatError(
            f"{source}: labels of {classes.dtype}, shape {tuple(classes.shape)}; accepted: integers (n,), the "
            f"class of each image{cure}"
        )
    wide = classes.dtype == torch.uint64
    classes = classes.to(torch.int64, copy=True)
    lowest, highest = (int(classes.min()), int(classes.max())) if len(classes) else (0, 0)
    if lowest < 0 and wide:  # it went round
        lowest, highest = 0, lowest + 2**64
    if lowest < 0:
        raise DataFormatError(f"{source}: label {lowest}; labels count from 0")
    if highest >= MOST_CLASSES:
        raise DataFormatError(f"{source}: label {highest}; accepted: labels from 0 to {MOST_CLASSES - 1}")
    return classes


def shown_names(names: Iterable[object], source: str) -> tuple[str, ...]:
    """Names of classes, printable and of at most 200 characters. Raises `DataFormatError` if they are no texts or too many."""
    try:
        texts = tuple(_shown(name) for name in islice(names, MOST_CLASSES + 1))
    except Exception as error:  # whatever a caller's objects raise
        raise DataFormatError(f"{source}: class names that are no texts ({type(error).__name__})") from None
    if len(texts) > MOST_CLASSES:
        raise DataFormatError(f"{source}: more than {MOST_CLASSES} class names; accepted: one for each class")
    return texts


def _shown(name: object) -> str:
    text = printable(str(name)[: 10 * _LONGEST_NAME])
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _as_tensor(values: Tensor | NDArray[Any], what: str, source: str) -> Tensor:
    """A plain dense tensor on the CPU, which may share its memory with ``values``."""
    try:
        if isinstance(values, Tensor):
            odd = [name for name in ("is_sparse", "is_quantized", "is_meta", "is_nested") if getattr(values, name)]
            if odd or values.layout != torch.strided:
                raise TypeError(f"a tensor with {', '.join(odd) or values.layout}")
            return values.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg()
        array = np.asarray(values)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype.kind not in "buif":
            raise TypeError(f"numpy type {array.dtype}")
        return torch.from_numpy(np.require(array, requirements=("C", "W")))
    except Exception as error:  # whatever a caller's object, a ragged list or an odd tensor raises
        raise DataFormatError(f"{source}: {what} are no dense array of numbers ({first_line(error)[:160]})") from None


def choose(labels: Tensor, most: int, seed: int) -> Tensor:
    """Sorted indices of ``most`` images: each class gives its first, then all give in proportion to their size."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    by_class = torch.argsort(labels[order], stable=True)
    counts = torch.unique(labels, return_counts=True)[1]
    before = (counts.cumsum(0) - counts).repeat_interleave(counts)
    turn = torch.empty(len(labels), dtype=torch.float64)
    turn[by_class] = (torch.arange(len(labels)) - before).double() / counts.repeat_interleave(counts)
    return order[torch.argsort(turn, stable=True)[:most]].sort().values

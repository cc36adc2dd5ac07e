"""What every source does with its images: choose, decode, resize, change channels, and say briefly what went wrong."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit.data.clean_set import CleanSet
from backdoor_audit.errors import DataFormatError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what pillow's convert("L") uses
ACCEPTED = "accepted: a folder with one sub-folder per class, an .npz file, or torchvision:NAME?root=DIR"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user wants done to the images of whatever source."""

    resize: tuple[int, int] | None
    channels: int | None
    most: int | None
    seed: int
    class_names: tuple[str, ...] | None


def converted(clean_set: CleanSet, resize: tuple[int, int] | None, channels: int | None) -> CleanSet:
    """The set with images of that size (px) and number of channels."""
    return replace(clean_set, images=with_channels(resized(clean_set.images, resize), channels))


def resized(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Images (n, c, h, w) scaled to ``size`` px, bilinear with antialiasing; None leaves them."""
    if size is None or tuple(images.shape[2:]) == size:
        return images
    scaled = functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    return scaled.clamp_(0, 1)


def with_channels(images: Tensor, channels: int | None) -> Tensor:
    """Grey images repeated to 3 channels, or colour ones weighted to 1; None leaves them."""
    if channels == 3 and images.shape[1] == 1:
        return images.repeat(1, 3, 1, 1)
    if channels == 1 and images.shape[1] == 3:
        return (images * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True).clamp_(0, 1)
    return images


def decode(
    readers: Sequence[tuple[str, Callable[[], Image.Image]]],
    source: str,
    resize: tuple[int, int] | None,
    channels: int | None,
) -> Tensor:
    """All images as one tensor (n, c, h, w) in [0, 1]; every image that fails is named before anything is raised."""
    images: list[Tensor] = []
    broken: list[str] = []
    for name, reader in tqdm(readers, desc=f"reading {source}", unit="image", disable=None, leave=False):
        try:
            images.append(with_channels(resized(_pixels(reader), resize), channels))
        except Exception as error:  # pillow's decoders raise anything on damaged files
            broken.append(f"{name} ({brief(error)})")
    if broken:
        raise DataFormatError(f"{source}: {len(broken)} unreadable images: {listed(broken)}; replace or remove them")
    sizes = Counter(tuple(image.shape[2:]) for image in images)
    if len(sizes) > 1:
        counted = [f"{height}x{width} ({count})" for (height, width), count in sizes.most_common()]
        raise DataFormatError(
            f"{source}: images of {len(sizes)} sizes, {listed(counted, 4)}; pass --resize=PIXELS, the side that the "
            "model was trained on"
        )
    widest = max((image.shape[1] for image in images), default=1)
    return torch.cat([with_channels(image, widest) for image in images])


def _pixels(reader: Callable[[], Image.Image]) -> Tensor:
    """One image (1, c, h, w) in [0, 1]: grey stays grey, everything else becomes RGB; transparency is dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on EXIF and palettes
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with reader() as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}; accepted: 8 bits per channel")
            grey = image.mode in ("1", "L", "LA", "La")
            array = np.array(image.convert("L" if grey else "RGB"))
    pixels = torch.from_numpy(array).float().div_(255)
    return pixels[None, None] if grey else pixels.permute(2, 0, 1)[None]


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def brief(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__

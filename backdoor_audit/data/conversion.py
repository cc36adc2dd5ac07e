"""What every source does with its images: choose, decode, resize, change channels, and say briefly what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backdoor_audit.data.clean_set import choose
from backdoor_audit.data.pictures import pixels_of
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.printable import first_line, listed, printable

Reader = tuple[str, Callable[[], Image.Image]]
"""What a picture is called, and what opens it."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what pillow's convert("L") uses
_AT_ONCE = 2**22  # pixels that are converted together, so that what comes between takes little memory
ACCEPTED = (
    "accepted: a folder with one sub-folder per class, an .npz file, a .csv of paths and labels, or "
    "torchvision:NAME?root=DIR"
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user wants done to the images of whatever source."""

    resize: tuple[int, int] | None
    channels: int | None
    most: int | None
    seed: int
    class_names: tuple[str, ...] | None = None
    order: str = ""
    model_names: tuple[str, ...] = ()


def converted(images: Tensor, wish: Wish) -> Tensor:
    """The images (n, c, h, w) in the size (px) and with the channels that are wished for."""
    count, channels, height, width = images.shape
    shape = (wish.channels or channels, *(wish.resize or (height, width)))
    if shape == (channels, height, width):
        return images
    done = torch.empty(count, *shape)
    step = max(1, _AT_ONCE // max(height * width, shape[1] * shape[2]))
    for start in range(0, count, step):
        some = images[start : start + step]
        done[start : start + step] = with_channels(resized(some, wish.resize), wish.channels)
    return done


def resized(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Images (n, c, h, w) scaled to ``size`` px, bilinear with antialiasing; None leaves them."""
    if size is None or tuple(images.shape[2:]) == size:
        return images
    height, width = size
    if height < images.shape[2] and width > images.shape[3]:  # torch does the width first: tall images would explode
        images = _scaled(images, (height, images.shape[3]))
    return _scaled(images, size).clamp_(0, 1)


def _scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def with_channels(images: Tensor, channels: int | None) -> Tensor:
    """Grey images repeated to 3 channels, or colour ones weighted to 1; None leaves them."""
    if channels == 3 and images.shape[1] == 1:
        return images.repeat(1, 3, 1, 1)
    if channels == 1 and images.shape[1] == 3:
        return (images * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True).clamp_(0, 1)
    return images


def chosen(labels: Tensor, reader: Callable[[int], Reader], wish: Wish, reading: Reading) -> tuple[Tensor, Tensor]:
    """As many of the labelled pictures as are wished for, decoded, and their labels; ``reader`` gives that of each number."""
    indices = choose(labels, min(wish.most or len(labels), len(labels)), wish.seed)
    return _decoded([reader(index) for index in indices.tolist()], wish, reading), labels[indices]


def _decoded(readers: Sequence[Reader], wish: Wish, reading: Reading) -> Tensor:
    """All images as one tensor (n, c, h, w) in [0, 1]; every image that fails is named before anything is raised.

    Each picture is decoded alone, and only what is left after resizing is kept.
    """
    count = len(readers)
    if wish.resize is not None:
        reading.check_images(count, (wish.channels or 1, *wish.resize))
    images: Tensor | None = None
    broken: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    label = f"reading {printable(reading.source)}"
    for index, (name, reader) in enumerate(tqdm(readers, desc=label, unit="image", disable=None, leave=False)):
        reading.check_time()
        try:
            image = with_channels(resized(pixels_of(reader, reading), wish.resize), wish.channels)[0]
        except Exception as error:  # pillow's decoders raise anything on damaged files
            broken.append(f"{name} ({brief(error)})")
            continue
        channels, height, width = image.shape
        sizes[height, width] += 1
        if images is None:
            reading.check_images(count, (channels, height, width))
            images = torch.empty(count, channels, height, width)
        if images.shape[2:] != image.shape[1:]:
            continue
        if channels > images.shape[1]:  # one colour image makes all of them RGB
            reading.check_images(count, (channels + 1, height, width))
            images = images.repeat(1, channels, 1, 1)
        images[index] = image
    if broken:
        raise DataFormatError(
            f"{reading.source}: {len(broken)} unreadable images: {listed(broken)}; replace or remove them"
        )
    if images is None or len(sizes) > 1:
        counted = [f"{height}x{width} ({found})" for (height, width), found in sizes.most_common()]
        raise DataFormatError(
            f"{reading.source}: images of {len(sizes)} sizes, {listed(counted, 4)}; pass --resize=PIXELS, the side that the "
            "model was trained on"
        )
    return images


def brief(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return first_line(error)[:160]

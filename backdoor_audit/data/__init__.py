"""The user's own clean images: a folder, an npz file or a torchvision set becomes one tensor in [0, 1] with labels."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from backdoor_audit.data.clean_set import CleanSet
from backdoor_audit.data.conversion import ACCEPTED, Wish, brief
from backdoor_audit.data.folder import from_folder
from backdoor_audit.data.npz import from_npz
from backdoor_audit.data.pictures import IMAGE_SUFFIXES
from backdoor_audit.data.reading import Reading
from backdoor_audit.data.torchvision_set import from_torchvision
from backdoor_audit.errors import DataFormatError

_LARGEST_SIDE = 2**16 - 1  # px, of an image

__all__ = ["IMAGE_SUFFIXES", "CleanSet", "load_clean_set"]


def load_clean_set(
    source: str | Path,
    *,
    resize: int | tuple[int, int] | None = None,
    channels: int | None = None,
    most: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> CleanSet:
    """Clean images from a folder, an npz file or a torchvision set.

    * A folder has one sub-folder per class. Sorted names give the labels, as in torchvision's ``ImageFolder``; if all
      names are numbers, the number is the label; if ``class_names`` has them all, their place there is the label. A
      file's content decides what it is: PNG, JPEG, BMP, GIF, WebP, TIFF, PPM; of several frames the first counts.
    * An ``.npz`` file has ``images``, ``labels`` and optionally ``class_names``, as in `CleanSet.of`.
    * ``torchvision:CIFAR10?root=DIR&train=false`` is a class of ``torchvision.datasets``; ``split=test`` for those that
      have splits. The test part is the default. Only ``download=true`` lets it download.

    ``resize`` (px, a side or height and width) is bilinear with antialiasing. ``channels`` 1 or 3 converts: colour to
    grey by luma, grey to colour by repeating. ``most`` keeps a seeded choice of that many images, in proportion to the
    classes; files outside of the choice are not opened.

    Memory and time are those of `backdoor_audit.bounds`: half of the memory for all images as floats, half for a single
    picture while it is decoded.

    Raises `DataFormatError`, one line that begins with the source.
    """
    name = str(source)
    side = (resize, resize) if isinstance(resize, int) else resize
    if side is not None and (len(side) != 2 or min(side) < 1 or max(side) > _LARGEST_SIDE):
        raise DataFormatError(
            f"{name}: cannot resize to {resize}; accepted: 1 to {_LARGEST_SIDE} px, a side or height and width"
        )
    if channels not in (None, 1, 3):
        raise DataFormatError(f"{name}: cannot convert to {channels} channels; accepted: 1 (grey) or 3 (colour)")
    if most is not None and most < 1:
        raise DataFormatError(f"{name}: cannot take {most} images; accepted: 1 or more")
    wish = Wish(side, channels, most, seed, None if class_names is None else tuple(class_names))
    reading = Reading.begun(name)
    try:
        return _read(name, wish, reading)
    except (MemoryError, RuntimeError) as error:  # torch says by RuntimeError that there is no memory
        raise DataFormatError(
            f"{name}: cannot be read ({brief(error)}); take fewer or smaller images (--audit-max-images, --resize)"
        ) from None


def _read(source: str, wish: Wish, reading: Reading) -> CleanSet:
    if source.startswith("torchvision:"):
        return from_torchvision(source, wish, reading)
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataFormatError(f"{source}: no such file or folder; {ACCEPTED}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataFormatError(
            f"{source}: cannot be read ({getattr(error, 'strerror', None) or error}); {ACCEPTED}"
        ) from None
    if stat.S_ISDIR(mode):
        return from_folder(path, wish, reading)
    if not stat.S_ISREG(mode):
        raise DataFormatError(f"{source}: neither a file nor a folder; {ACCEPTED}")
    return from_npz(path, wish, reading)

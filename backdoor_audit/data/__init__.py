"""The user's own clean images: a folder, an npz file or a torchvision set becomes one tensor in [0, 1] with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backdoor_audit.data.clean_set import CleanSet
from backdoor_audit.data.conversion import ACCEPTED, Wish
from backdoor_audit.data.folder import IMAGE_SUFFIXES, from_folder
from backdoor_audit.data.npz import from_npz
from backdoor_audit.data.torchvision_set import from_torchvision
from backdoor_audit.errors import DataFormatError

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
      names are numbers, the number is the label; if ``class_names`` has them all, their place there is the label.
    * An ``.npz`` file has ``images``, ``labels`` and optionally ``class_names``, as in `CleanSet.of`.
    * ``torchvision:CIFAR10?root=DIR&train=false`` is a class of ``torchvision.datasets``; ``split=test`` for those that
      have splits. The test part is the default. Only ``download=true`` lets it download.

    ``resize`` (px, a side or height and width) is bilinear with antialiasing. ``channels`` 1 or 3 converts: colour to
    grey by luma, grey to colour by repeating. ``most`` keeps a seeded choice of that many images, in proportion to the
    classes; files outside of the choice are not opened.

    Raises `DataFormatError`, one line that begins with the source.
    """
    name = str(source)
    side = (resize, resize) if isinstance(resize, int) else resize
    if side is not None and (len(side) != 2 or min(side) < 1):
        raise DataFormatError(f"{name}: cannot resize to {resize}; accepted: px above 0, a side or height and width")
    if channels not in (None, 1, 3):
        raise DataFormatError(f"{name}: cannot convert to {channels} channels; accepted: 1 (grey) or 3 (colour)")
    if most is not None and most < 1:
        raise DataFormatError(f"{name}: cannot take {most} images; accepted: 1 or more")
    wish = Wish(side, channels, most, seed, None if class_names is None else tuple(class_names))
    if name.startswith("torchvision:"):
        return from_torchvision(name, wish)
    path = Path(source)
    if path.is_dir():
        return from_folder(path, wish)
    if not path.exists():
        raise DataFormatError(f"{name}: no such file or folder; {ACCEPTED}")
    if not path.is_file():
        raise DataFormatError(f"{name}: neither a file nor a folder; {ACCEPTED}")
    return from_npz(path, wish)

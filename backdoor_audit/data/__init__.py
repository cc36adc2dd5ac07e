"""The user's own clean images: a folder, an npz file or a torchvision set becomes one tensor in [0, 1] with labels."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backdoor_audit.data.clean_set import CleanSet, doubts
from backdoor_audit.data.conversion import ACCEPTED, Wish, brief
from backdoor_audit.data.folder import from_folder
from backdoor_audit.data.naming import names_from, names_in
from backdoor_audit.data.npz import from_npz
from backdoor_audit.data.pictures import IMAGE_SUFFIXES
from backdoor_audit.data.reading import Reading
from backdoor_audit.data.saved_dataset import from_saved_dataset, is_saved_dataset
from backdoor_audit.data.table import TABLE_SUFFIXES, from_csv, from_metadata, has_metadata
from backdoor_audit.data.torchvision_set import from_torchvision
from backdoor_audit.errors import DataFormatError

CLASS_ORDERS = ("text", "number")
_LARGEST_SIDE = 2**16 - 1  # px, of an image

__all__ = ["IMAGE_SUFFIXES", "CleanSet", "load_clean_set", "names_from", "names_in"]


def load_clean_set(
    source: str | Path,
    *,
    resize: int | tuple[int, int] | None = None,
    channels: int | None = None,
    most: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    class_order: str = "",
    model_names: Sequence[str] = (),
) -> CleanSet:
    """Clean images from a folder, a table, an npz file, a saved data set or a torchvision set.

    * A folder has one sub-folder per class. A file's content decides what it is: PNG, JPEG, BMP, GIF, WebP, TIFF, PPM; of
      several frames the first counts. Or it has a ``metadata.csv`` or ``metadata.jsonl`` with ``file_name`` and ``label``.
    * A ``.csv``, ``.jsonl`` or ``.txt`` file has a path and a label in every row; of several parts that it tells, one held out.
    * An ``.npz`` file has ``images``, ``labels`` and optionally ``class_names``, as in `CleanSet.of`, or arrays of the other
      names that are usual, as ``x_test`` and ``y_test``.
    * A folder that the package ``datasets`` saved to disk.
    * ``torchvision:CIFAR10?root=DIR&train=false`` is a class of ``torchvision.datasets``; ``split=test`` for those that
      have splits. The test part is the default. Only ``download=true`` lets it download.

    Classes that go by names get their labels in this order: the place in ``class_names`` if all are there; with
    ``class_order`` "text" or "number" the place among the names sorted so; the place in ``model_names``, those of the model's
    own file, if all are there. Else names that are numbers are the labels, and sorted names give them.

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
    if class_order not in ("", *CLASS_ORDERS):
        raise DataFormatError(f"{name}: no class order {class_order!r}; accepted: {', '.join(CLASS_ORDERS)}")
    given = None if class_names is None else tuple(class_names)
    wish = Wish(side, channels, most, seed, given, class_order, tuple(model_names))
    reading = Reading.begun(name)
    try:
        clean_set = _read(name, wish, reading)
        return replace(clean_set, notes=(*reading.notes, *doubts(clean_set.images)))
    except (MemoryError, RuntimeError) as error:  # torch says by RuntimeError that there is no memory
        raise DataFormatError(
            f"{name}: cannot be read ({brief(error)}); take fewer or smaller images (--audit-max-images, --resize)"
        ) from None
    except OSError as error:  # a folder that may be listed and not entered, a disk that fails
        where = f"{error.filename}: " if error.filename else ""
        raise DataFormatError(
            f"{name}: cannot be read ({where}{error.strerror or brief(error)}); make it and all that is in it readable, and its "
            "folders such that they may be entered (chmod -R u+rX)"
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
        for belongs, read in ((is_saved_dataset, from_saved_dataset), (has_metadata, from_metadata)):
            if belongs(path):
                return read(path, wish, reading)
        return from_folder(path, wish, reading)
    if not stat.S_ISREG(mode):
        raise DataFormatError(f"{source}: neither a file nor a folder; {ACCEPTED}")
    return (from_csv if path.suffix.lower() in TABLE_SUFFIXES else from_npz)(path, wish, reading)

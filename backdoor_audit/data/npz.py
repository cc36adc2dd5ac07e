"""Clean images from an ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from backdoor_audit.data.clean_set import CleanSet, choose
from backdoor_audit.data.conversion import ACCEPTED, Wish, brief, converted
from backdoor_audit.errors import DataFormatError


def from_npz(path: Path, wish: Wish) -> CleanSet:
    """``images``, ``labels`` and optionally ``class_names`` of the file. Raises `DataFormatError`."""
    if not zipfile.is_zipfile(path):
        raise DataFormatError(f"{path}: not an .npz file; {ACCEPTED}")
    wanted = "an .npz file holds images (n, h, w, c), labels (n,) and optionally class_names; write it with numpy.savez"
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ("images", "labels") if key not in file]
            if missing:
                raise DataFormatError(
                    f"{path}: no {' and no '.join(missing)}, found {', '.join(sorted(file)) or 'nothing'}; {wanted}"
                )
            images, labels = file["images"], file["labels"]
            names = file["class_names"] if "class_names" in file else np.array([], dtype=str)
    except (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataFormatError(f"{path}: cannot be read ({brief(error)}); {wanted}") from None
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataFormatError(f"{path}: class_names of {names.dtype}, shape {names.shape}; accepted: text (classes,)")
    found = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.tolist())
    chosen = wish.class_names if wish.class_names is not None else found
    countable = labels.ndim == 1 and labels.dtype.kind in "iu" and images.shape[:1] == labels.shape
    if wish.most is not None and countable and wish.most < len(labels):
        indices = choose(torch.from_numpy(labels.astype(np.int64)), wish.most, wish.seed).numpy()
        images, labels = images[indices], labels[indices]
    return converted(CleanSet.of(images, labels, chosen, str(path)), wish.resize, wish.channels)

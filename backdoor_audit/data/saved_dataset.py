"""Clean images from a folder that the package ``datasets`` of Hugging Face saved to disk."""

from __future__ import annotations

import importlib
import shlex
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backdoor_audit.data.clean_set import CleanSet, checked_labels, shown_names
from backdoor_audit.data.conversion import Reader, Wish, brief, chosen
from backdoor_audit.data.naming import labels_of, relabelled
from backdoor_audit.data.pictures import parsed, upright
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError
from backdoor_audit.printable import listed

_ONE, _SEVERAL = "state.json", "dataset_dict.json"
_PARTS = ("test", "validation", "val", "valid", "dev", "eval")
_LABELS = ("label", "labels", "class", "target", "fine_label", "category")
_WANTED = (
    "accepted: what datasets.Dataset.save_to_disk writes, with a column of images (cast_column(NAME, datasets.Image()) makes one "
    "of bytes) and one of labels"
)


def is_saved_dataset(folder: Path) -> bool:
    """Whether the folder is one that ``save_to_disk`` wrote."""
    return (folder / _SEVERAL).is_file() or ((folder / _ONE).is_file() and (folder / "dataset_info.json").is_file())


def from_saved_dataset(folder: Path, wish: Wish, reading: Reading) -> CleanSet:
    """Images of a saved data set, of its test or validation part where it has several. Nothing is fetched.

    Raises `DataFormatError`, also without the package ``datasets``.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DataFormatError(
            f"{folder}: saved by the package datasets, which is needed to read it; pip install 'backdoor-audit[datasets]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of a package that is not ours
        try:
            saved = _part(datasets, folder, reading)
            image, label = _columns(datasets, folder, saved)
            saved = saved.cast_column(image, datasets.Image(decode=False))
            found = list(saved[label])
            names = getattr(saved.features[label], "names", None)
        except DataFormatError:
            raise
        except Exception as error:  # of Arrow, of JSON, of features that this version does not know
            raise DataFormatError(f"{folder}: cannot be read ({brief(error)}); {_WANTED}") from None
        if found and all(isinstance(entry, str) for entry in found):
            label_of, called = labels_of(folder, sorted(set(found)), wish, reading, "labels")
            classes = torch.tensor([label_of[entry] for entry in found])
            shown = shown_names(called, str(folder))
        else:
            numbers, called_as = relabelled(np.asarray(found), names or (), wish, reading)
            classes, shown = checked_labels(numbers, str(folder)), shown_names(called_as, str(folder))
        if not len(classes):
            raise DataFormatError(f"{folder}: no images; {_WANTED}")

        def reader(index: int) -> Reader:
            return f"image {index}", _opener(saved, image, index, reading)

        return CleanSet(*chosen(classes, reader, wish, reading), shown, str(folder))


def _part(datasets: Any, folder: Path, reading: Reading) -> Any:
    """The data set, or its one part to audit with."""
    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    parts = list(saved)
    held_out = [name for name in _PARTS if name in saved]
    labelled = (name for name in held_out if not _is_unlabelled(saved[name]))
    part = next(labelled, next(iter(held_out), parts[0] if len(parts) == 1 else None))
    if part is None:
        raise DataFormatError(
            f"{folder}: parts {listed(parts, 5)}, none of them test or validation; give one, as in "
            f"--audit-data={shlex.quote(str(folder))}/PART"
        )
    if len(parts) > 1:
        reading.note(f"read: the part {part} of {listed(parts, 5)}")
    return saved[part]


def _is_unlabelled(saved: Any) -> bool:
    """Whether all labels are -1, as where the organisers of a competition keep them."""
    column = next((name for name in _LABELS if name in saved.features), None)
    return column is not None and len(saved) > 0 and all(label == -1 for label in saved[column])


def _columns(datasets: Any, folder: Path, saved: Any) -> tuple[str, str]:
    """The columns of images and of labels."""
    features = saved.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or _is_stored(kind)]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = [name for name in _LABELS if name in features] or classes
    if not images or not labels:
        raise DataFormatError(f"{folder}: columns {listed(list(features), 8)}; {_WANTED}")
    return ("image" if "image" in images else images[0]), labels[0]


def _is_stored(kind: object) -> bool:
    """Whether a column holds pictures as `datasets` stores them, without saying so: parquet files of other packages have such."""
    return isinstance(kind, Mapping) and kind.keys() == {"bytes", "path"}


def _opener(saved: Any, column: str, index: int, reading: Reading) -> Callable[[], Image.Image]:
    def item() -> Image.Image:
        entry = saved[index][column] or {}
        if not entry.get("bytes"):
            raise UnreadableError("no picture in this row; save_to_disk puts them in")
        return upright(parsed(entry["bytes"], reading))  # as `datasets` gives it

    return item

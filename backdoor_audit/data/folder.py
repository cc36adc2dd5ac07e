"""Clean images from a folder with one sub-folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from backdoor_audit.data.clean_set import CleanSet, choose
from backdoor_audit.data.conversion import Wish, decode, listed
from backdoor_audit.errors import DataFormatError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Files with these endings are read from class folders; everything else there is left alone."""


def from_folder(folder: Path, wish: Wish) -> CleanSet:
    """Pictures of all class folders, or a choice of them. Raises `DataFormatError` with the names of bad files."""
    files_of = {name: _image_files(folder / name) for name in _class_folders(folder)}
    empty = [name for name, files in files_of.items() if not files]
    if empty:
        raise DataFormatError(
            f"{folder}: no images in {listed(empty)}; put images there ({' '.join(IMAGE_SUFFIXES)}) or remove it"
        )
    labels_of, names = _labels_of(folder, list(files_of), wish.class_names)
    files = [(path, labels_of[name]) for name, paths in files_of.items() for path in paths]
    labels = torch.tensor([label for _, label in files])
    if wish.most is not None and wish.most < len(files):
        chosen = choose(labels, wish.most, wish.seed)
        files, labels = [files[index] for index in chosen.tolist()], labels[chosen]
    readers = [(str(path.relative_to(folder)), _opener(path)) for path, _ in files]
    images = decode(readers, str(folder), wish.resize, wish.channels)
    return CleanSet.of(images, labels, names, str(folder))


def _class_folders(folder: Path) -> list[str]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry.name for entry in visible if entry.is_dir()]
    if not folders:
        loose = sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in visible)
        found = f"{loose} images but no class folders" if loose else "no class folders"
        raise DataFormatError(f"{folder}: {found}; accepted: one sub-folder per class with its images in it")
    return folders


def _image_files(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if _is_image(name)]
    return found


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _labels_of(
    folder: Path, folders: list[str], class_names: Sequence[str] | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each class folder, and the names of the classes."""
    given = tuple(class_names or ())
    if given and set(folders) <= set(given):
        return {name: given.index(name) for name in folders}, given
    if all(name.isascii() and name.isdigit() for name in folders):
        numbers = {name: int(name) for name in folders}
        twice = [name for name, number in numbers.items() if list(numbers.values()).count(number) > 1]
        if twice:
            raise DataFormatError(f"{folder}: folders {listed(twice)} are the same class; name each class once")
        return numbers, given
    if given:
        strange = [name for name in folders if name not in given]
        raise DataFormatError(f"{folder}: folders {listed(strange)} are not in class_names ({listed(list(given))})")
    return {name: label for label, name in enumerate(folders)}, tuple(folders)


def _opener(path: Path) -> Callable[[], Image.Image]:
    return lambda: Image.open(path)

"""Clean images from a folder with one sub-folder per class."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from backdoor_audit.data.clean_set import MOST_CLASSES, CleanSet, choose, shown_names
from backdoor_audit.data.conversion import Wish, decode, listed
from backdoor_audit.data.pictures import IMAGE_SUFFIXES, opened
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError

_DEEPEST = 32  # folders inside each other


def from_folder(folder: Path, wish: Wish, reading: Reading) -> CleanSet:
    """Pictures of all class folders, or a choice of them. Raises `DataFormatError` with the names of bad files."""
    files_of = _files_of_classes(folder, reading)
    empty = [name for name, files in files_of.items() if not files]
    if empty:
        raise DataFormatError(
            f"{folder}: no images in {listed(empty)}; put images there ({' '.join(IMAGE_SUFFIXES)}) or remove it"
        )
    labels_of, names = _labels_of(folder, list(files_of), wish.class_names)
    shown = shown_names(names, str(folder))
    files = [(path, labels_of[name]) for name, paths in files_of.items() for path in paths]
    labels = torch.tensor([label for _, label in files])
    if wish.most is not None and wish.most < len(files):
        chosen = choose(labels, wish.most, wish.seed)
        files, labels = [files[index] for index in chosen.tolist()], labels[chosen]
    readers = [(str(path.relative_to(folder)), _opener(path, reading)) for path, _ in files]
    return CleanSet(decode(readers, wish, reading), labels, shown, str(folder))


def _files_of_classes(folder: Path, reading: Reading) -> dict[str, list[Path]]:
    """The image files of each class folder, in order; one that cannot be read to its end is an error, not a smaller class."""
    try:
        entries = _entries(folder)
    except OSError as error:
        raise DataFormatError(f"{folder}: cannot be read ({error.strerror}); make it readable") from None
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    files_of: dict[str, list[Path]] = {}
    strange = []
    for entry in visible:
        try:
            if stat.S_ISDIR(entry.stat().st_mode):
                files_of[entry.name] = [path for path in files_within(Path(entry.path), reading) if is_image(path.name)]
        except OSError as error:
            strange.append(f"{entry.name} ({error.strerror or error})")
    if strange:
        raise DataFormatError(f"{folder}: {len(strange)} unreadable entries: {listed(strange)}; repair or remove them")
    if not files_of:
        loose = sum(is_image(entry.name) for entry in visible)
        found = f"{loose} images but no class folders" if loose else "no class folders"
        raise DataFormatError(f"{folder}: {found}; accepted: one sub-folder per class with its images in it")
    if len(files_of) > MOST_CLASSES:
        raise DataFormatError(f"{folder}: {len(files_of)} class folders; accepted: at most {MOST_CLASSES}")
    return files_of


def files_within(folder: Path, reading: Reading, *, follow: bool = False) -> Iterator[Path]:
    """All that is no folder, sorted, each folder before its sub-folders.

    What is hidden and links to folders are left out, or with ``follow`` taken along, as torchvision does. Raises `OSError` for
    a link that leads back, for what cannot be read, and below 32 folders inside each other; `DataFormatError` when the time
    is over.
    """
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(folder, ())]
    while waiting:
        here, above = waiting.pop()
        reading.check_time()
        if len(above) > _DEEPEST:
            raise OSError(f"more than {_DEEPEST} folders inside each other")
        within = (*above, here.resolve()) if follow else (*above, here)
        if within[-1] in above:
            raise OSError(f"the link {here.name} leads back to a folder that it is in")
        inner = []
        for entry in _entries(here):
            if entry.name.startswith(".") and not follow:
                continue
            if not _is_folder(entry):
                yield Path(entry.path)
            elif follow or not entry.is_symlink():
                inner.append((Path(entry.path), within))
        waiting += reversed(inner)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; an error where it is to be opened, as any other dead link
        return False


def is_image(name: str) -> bool:
    """Whether a file of that name counts as an image."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _labels_of(
    folder: Path, folders: list[str], class_names: Sequence[str] | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each class folder, and the names of the classes."""
    given = tuple(class_names or ())
    place = {name: label for label, name in reversed(list(enumerate(given)))}
    if given and set(folders) <= set(place):
        return {name: place[name] for name in folders}, given
    if all(name.isascii() and name.isdigit() for name in folders):
        return _numbers_of(folder, folders), given
    if given:
        strange = [name for name in folders if name not in place]
        raise DataFormatError(f"{folder}: folders {listed(strange)} are not in class_names ({listed(given)})")
    return {name: label for label, name in enumerate(folders)}, tuple(folders)


def _numbers_of(folder: Path, folders: list[str]) -> dict[str, int]:
    numbers = {name: int(name) for name in folders}
    large = [name for name, number in numbers.items() if number >= MOST_CLASSES]
    if large:
        raise DataFormatError(
            f"{folder}: folders {listed(large)} are numbers and so the labels; accepted: 0 to {MOST_CLASSES - 1}; give names"
        )
    counts = Counter(numbers.values())
    twice = [name for name, number in numbers.items() if counts[number] > 1]
    if twice:
        raise DataFormatError(f"{folder}: folders {listed(twice)} are the same class; name each class once")
    return numbers


def _opener(path: Path, reading: Reading) -> Callable[[], Image.Image]:
    return lambda: opened(path, reading)

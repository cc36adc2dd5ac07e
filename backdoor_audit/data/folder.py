"""Clean images from a folder with one sub-folder per class."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from backdoor_audit.data.clean_set import MOST_CLASSES, CleanSet, choose, shown_names
from backdoor_audit.data.conversion import Wish, decode
from backdoor_audit.data.naming import labels_of
from backdoor_audit.data.pictures import IMAGE_SUFFIXES, begins_as_picture, opened
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.printable import listed

_DEEPEST = 32  # folders inside each other
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


def from_folder(folder: Path, wish: Wish, reading: Reading) -> CleanSet:
    """Pictures of all class folders, or a choice of them. Raises `DataFormatError` with the names of bad files."""
    files_of = _files_of_classes(folder, reading)
    empty = [name for name, files in files_of.items() if not files]
    if empty:
        left = f" ({reading.left()})" if reading.left() else ""
        raise DataFormatError(
            f"{folder}: no images in {listed(empty)}{left}; put images there ({' '.join(IMAGE_SUFFIXES)}) or remove it"
        )
    label_of, names = labels_of(folder, list(files_of), wish, reading)
    shown = shown_names(names, str(folder))
    files = [(path, label_of[name]) for name, paths in files_of.items() for path in paths]
    labels = torch.tensor([label for _, label in files])
    if wish.most is not None and wish.most < len(files):
        chosen = choose(labels, wish.most, wish.seed)
        files, labels = [files[index] for index in chosen.tolist()], labels[chosen]
    readers = [(str(path.relative_to(folder)), partial(opened, path, reading)) for path, _ in files]
    return CleanSet(decode(readers, wish, reading), labels, shown, str(folder))


def _files_of_classes(folder: Path, reading: Reading) -> dict[str, list[Path]]:
    """The image files of each class folder, which may be a link, in order.

    One that cannot be read to its end is an error, not a smaller class.
    """
    try:
        entries = _entries(folder)
    except OSError as error:
        raise DataFormatError(f"{folder}: cannot be read ({error.strerror}); make it readable") from None
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in entries:
        if entry.name.startswith("."):
            reading.leave(entry.name)
    files_of: dict[str, list[Path]] = {}
    strange = []
    for entry in visible:
        try:
            if stat.S_ISDIR(entry.stat().st_mode):
                files_of[entry.name] = _pictures(folder, Path(entry.path), reading)
            else:
                reading.leave(entry.name)
        except OSError as error:
            strange.append(f"{entry.name} ({error.strerror or error})")
    if strange:
        raise DataFormatError(f"{folder}: {len(strange)} unreadable entries: {listed(strange)}; repair or remove them")
    if not files_of:
        loose = sum(is_image(entry.name) for entry in visible)
        found = f"{loose} images but no class folders" if loose else "no class folders"
        raise DataFormatError(f"{folder}: {found}; accepted: one sub-folder per class with its images in it")
    _refuse_parts(folder, files_of)
    if len(files_of) > MOST_CLASSES:
        raise DataFormatError(f"{folder}: {len(files_of)} class folders; accepted: at most {MOST_CLASSES}")
    return files_of


def _pictures(folder: Path, of_class: Path, reading: Reading) -> list[Path]:
    """The pictures below a class folder, by their endings or by how they begin; everything else is left and told."""
    pictures = []
    for path in files_within(of_class, reading, leave=lambda path: reading.leave(str(path.relative_to(folder)))):
        if is_image(path.name) or begins_as_picture(path):
            pictures.append(path)
        else:
            reading.leave(str(path.relative_to(folder)))
    return pictures


def _refuse_parts(folder: Path, files_of: Mapping[str, list[Path]]) -> None:
    """Raise `DataFormatError` where the folders are the parts of a data set, each with class folders of its own."""
    nested = all(len(path.relative_to(folder).parts) > 2 for files in files_of.values() for path in files)
    if nested and {name.lower() for name in files_of} <= _PARTS:
        one = next((name for name in files_of if "test" in name.lower()), next(iter(files_of)))
        raise DataFormatError(
            f"{folder}: {listed(list(files_of))} are parts of a data set, not classes; give one of them, as in "
            f"--audit-data={folder / one}"
        )


def files_within(
    folder: Path, reading: Reading, *, follow: bool = False, leave: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """All that is no folder, sorted, each folder before its sub-folders.

    What is hidden and links to folders are left out, and handed to ``leave``, or with ``follow`` taken along, as torchvision
    does. Raises `OSError` for a link that leads back, for what cannot be read, and below 32 folders inside each other;
    `DataFormatError` when the time is over.
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
            path, is_folder = Path(entry.path), _is_folder(entry)
            if not follow and (entry.name.startswith(".") or (is_folder and entry.is_symlink())):
                if leave is not None:
                    leave(path)
            elif is_folder:
                inner.append((path, within))
            else:
                yield path
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

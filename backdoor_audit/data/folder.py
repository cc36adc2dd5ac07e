"""Clean images from a folder with one sub-folder per class."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from backdoor_audit.data import containers
from backdoor_audit.data.class_folders import (
    AS_TABLE,
    TABLES,
    drawn_over,
    home_of_classes,
    inner_classes,
    refuse_loose_parts,
    refuse_parts,
)
from backdoor_audit.data.clean_set import MOST_CLASSES, CleanSet, shown_names
from backdoor_audit.data.conversion import Reader, Wish, chosen
from backdoor_audit.data.naming import labels_of
from backdoor_audit.data.pictures import IMAGE_SUFFIXES, begins_as_picture, opened
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.printable import listed

_DEEPEST = 32  # folders inside each other
_OF_LABELS = (*TABLES, ".txt", ".json", ".xml")
_AS_ROWS = ", or FILE.csv with path and label of each"
_OF_SYSTEMS = frozenset(
    (
        *("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler"),
        *("system volume information", "lost+found", "__pycache__"),
    )
)
"""Folders that systems and programs put among those of their users; hidden ones are left anyway."""


def from_folder(folder: Path, wish: Wish, reading: Reading) -> CleanSet:
    """Pictures of all class folders, or a choice of them. Raises `DataFormatError` with the names of bad files."""
    files_of = _files_of_classes(folder, reading)
    empty = [name for name, files in files_of.items() if not files]
    if empty:
        if len(empty) == len(files_of) and (instead := _instead(folder, reading)):
            raise DataFormatError(f"{folder}: no images in {listed(empty)}; {instead}")
        left = f" ({reading.left()})" if reading.left() else ""
        home = home_of_classes(folder, files_of)
        other = (
            f", or give --audit-data={shlex.quote(str(home))} where the classes are in there" if home != folder else ""
        )
        if label := _label_file(folder, empty, reading):
            raise DataFormatError(
                f"{folder}: no images in {listed(empty)}, but files of labels ({label}); {AS_TABLE}{other}"
            )
        raise DataFormatError(
            f"{folder}: no images in {listed(empty)}{left}; put images there ({' '.join(IMAGE_SUFFIXES)}) or remove "
            f"{'them' if len(empty) > 1 else 'it'}{other}"
        )
    refuse_parts(folder, files_of)
    if not set(files_of) <= set(wish.class_names or ()):
        refuse_loose_parts(folder, files_of)
    if told := inner_classes(folder, files_of):
        reading.note(told)
    label_of, names = labels_of(folder, list(files_of), wish, reading)
    shown = shown_names(names, str(folder))
    files = [(path, label_of[name]) for name, paths in files_of.items() for path in paths]
    labels = torch.tensor([label for _, label in files])

    def reader(index: int) -> Reader:
        return str(files[index][0].relative_to(folder)), partial(opened, files[index][0], reading)

    return CleanSet(*chosen(labels, reader, wish, reading), shown, str(folder))


def _files_of_classes(folder: Path, reading: Reading) -> dict[str, list[Path]]:
    """The image files of each class folder, which may be a link, in order.

    One that cannot be read to its end is an error, not a smaller class.
    """
    try:
        entries = _entries(folder)
    except OSError as error:
        raise DataFormatError(f"{folder}: cannot be read ({error.strerror}); make it readable") from None
    visible = [entry for entry in entries if not _is_apart(entry.name)]
    for entry in entries:
        if _is_apart(entry.name):
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
        cure = (
            _instead(folder, reading)
            or f"accepted: one sub-folder per class with its images in it{_AS_ROWS if loose else ''}"
        )
        raise DataFormatError(f"{folder}: {found}; {cure}")
    if len(files_of) > MOST_CLASSES:
        raise DataFormatError(f"{folder}: {len(files_of)} class folders; accepted: at most {MOST_CLASSES}")
    return files_of


def _instead(folder: Path, reading: Reading) -> str:
    """Another container that lies in a folder without class folders, with the way out; empty if there is none."""
    try:
        return containers.within(folder, files_within(folder, reading))
    except OSError:  # a remark only
        return ""


def _label_file(folder: Path, names: Sequence[str], reading: Reading) -> str:
    """The first file of labels in folders without pictures, as those of object detection have them; empty if there is none."""
    files = (path for name in names for path in files_within(folder / name, reading))
    found = next((path for path in files if path.name.lower().endswith(_OF_LABELS)), None)
    return "" if found is None else str(found.relative_to(folder))


def _pictures(folder: Path, of_class: Path, reading: Reading) -> list[Path]:
    """The pictures below a class folder, by their endings or by how they begin; everything else is left and told."""
    pictures = []
    for path in files_within(of_class, reading, leave=lambda path: reading.leave(str(path.relative_to(folder)))):
        if is_image(path.name) or begins_as_picture(path):
            pictures.append(path)
        else:
            reading.leave(str(path.relative_to(folder)))
    drawn = drawn_over(of_class, pictures)
    for _ in drawn:
        reading.note("{n} pictures left out: drawn over another picture of their class, as masks are")
    return [path for path in pictures if path not in drawn]


def _is_apart(name: str) -> bool:
    """Whether a file or folder of that name is none of the user's data."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def files_within(
    folder: Path, reading: Reading, *, follow: bool = False, leave: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """All that is no folder, sorted, each folder before its sub-folders.

    What is hidden, what systems put there and links to folders are left out, and handed to ``leave``, or with ``follow`` taken
    along, as torchvision does. Raises `OSError` for a link that leads back, for what cannot be read, and below 32 folders
    inside each other; `DataFormatError` when the time is over.
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
            if not follow and (_is_apart(entry.name) or (is_folder and entry.is_symlink())):
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

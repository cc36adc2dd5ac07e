"""Clean images from a folder with one sub-folder per class."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from backdoor_audit.data import containers
from backdoor_audit.data.clean_set import MOST_CLASSES, CleanSet, shown_names
from backdoor_audit.data.conversion import Reader, Wish, chosen
from backdoor_audit.data.naming import labels_of
from backdoor_audit.data.pictures import IMAGE_SUFFIXES, begins_as_picture, opened
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.printable import listed

_DEEPEST = 32  # folders inside each other
_PARTS = frozenset(
    (
        *("train", "training", "trainset", "val", "valid", "validation", "valset", "test", "testing", "testset"),
        *("dev", "eval", "pred", "holdout"),
    )
)
_HELD_OUT = ("test", "val", "dev", "eval", "holdout", "train")
_PLAIN_WORDS = frozenset(
    ("data", "dataset", "set", "images", "image", "imgs", "img", "pictures", "photos", "jpg", "jpeg", "png", "split")
)
_DRAWN = frozenset(
    ("mask", "masks", "segmentation", "segmentations", "annotation", "annotations", "gt", "labels", "depth")
)
"""How folders are called that hold a picture drawn over each picture of a folder beside them."""
_DRAWN_NAME = re.compile(rf"(.+?)[ _-](?:{'|'.join(sorted(_DRAWN))})(?:[ _-]?[0-9]+)?", re.IGNORECASE)

_TABLES = (".csv", ".tsv", ".jsonl")
_OF_LABELS = (*_TABLES, ".txt", ".json", ".xml")
_AS_TABLE = "lay the images out in one folder per class, or write path and class of each into FILE.csv and give that"
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
        home = _home_of_classes(folder, files_of)
        other = (
            f", or give --audit-data={shlex.quote(str(home))} where the classes are in there" if home != folder else ""
        )
        if label := _label_file(folder, empty, reading):
            raise DataFormatError(
                f"{folder}: no images in {listed(empty)}, but files of labels ({label}); {_AS_TABLE}{other}"
            )
        raise DataFormatError(
            f"{folder}: no images in {listed(empty)}{left}; put images there ({' '.join(IMAGE_SUFFIXES)}) or remove "
            f"{'them' if len(empty) > 1 else 'it'}{other}"
        )
    _refuse_parts(folder, files_of)
    if not set(files_of) <= set(wish.class_names or ()):
        _refuse_loose_parts(folder, files_of)
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


def _refuse_loose_parts(folder: Path, files_of: Mapping[str, list[Path]]) -> None:
    """Raise `DataFormatError` for a folder alone, or the parts of a data set, whose pictures lie in no class folders."""
    names = list(files_of)
    tables = sorted(entry.name for entry in _entries(folder) if entry.name.lower().endswith(_TABLES))
    beside = frozenset[str]().union(*map(_words, names)) - _PLAIN_WORDS - _PARTS
    drawn = frozenset() < beside <= _DRAWN and any(_words(name) <= _PLAIN_WORDS for name in names)
    alone = len(names) == 1 and (bool(tables) or frozenset() < _words(names[0]) <= _PARTS | _PLAIN_WORDS)
    if not alone and (len(names) == 1 or not (drawn or _parts_among(names))):
        return
    names = (not drawn and _parts_among(names)) or names
    what = "is the only folder" if alone else "are parts of a data set, not classes"
    what = "are pictures and what is drawn over them, not classes" if drawn and not alone else what
    table = (
        f"; {tables[0]} may have them: give it, as in --audit-data={shlex.quote(str(folder / tables[0]))}, or"
        if tables
        else ";"
    )
    classes = (
        f", or pass --audit-class-names={shlex.quote(','.join(files_of))} where these are the classes"
        if not alone
        else ""
    )
    raise DataFormatError(
        f"{folder}: {listed(names)} {what}, and nothing tells the classes of the images in "
        f"{'it' if alone else 'them'}{table} {_AS_TABLE}{classes}"
    )


def _pictures(folder: Path, of_class: Path, reading: Reading) -> list[Path]:
    """The pictures below a class folder, by their endings or by how they begin; everything else is left and told."""
    pictures = []
    for path in files_within(of_class, reading, leave=lambda path: reading.leave(str(path.relative_to(folder)))):
        if is_image(path.name) or begins_as_picture(path):
            pictures.append(path)
        else:
            reading.leave(str(path.relative_to(folder)))
    drawn = _drawn_over(of_class, pictures)
    for _ in drawn:
        reading.note("{n} pictures left out: drawn over another picture of their class, as masks are")
    return [path for path in pictures if path not in drawn]


def _drawn_over(of_class: Path, pictures: Sequence[Path]) -> set[Path]:
    """Those that are called as another picture of the class, and as what is drawn over it, in the name or that of a folder."""
    plain: set[str] = set()
    over: dict[Path, str] = {}
    for path in pictures:
        named = _DRAWN_NAME.fullmatch(path.stem)
        if named or any(_words(one) & _DRAWN for one in path.relative_to(of_class).parts[:-1]):
            over[path] = named[1] if named else path.stem
        else:
            plain.add(path.stem)
    return {path for path, stem in over.items() if stem in plain}


def _refuse_parts(folder: Path, files_of: Mapping[str, list[Path]]) -> None:
    """Raise `DataFormatError` where the folders are no classes, but hold the folders that are."""
    home = _home_of_classes(folder, files_of)
    if home == folder:
        return
    names, where = list(files_of), f"as in --audit-data={shlex.quote(str(home))}"
    if len(names) > 1:
        names = _parts_among(names) or names
        raise DataFormatError(
            f"{folder}: {listed(names)} are parts of a data set, not classes; give one of them, {where}"
        )
    why = "is a part of a data set, not a class"
    if not _words(names[0]) & _PARTS:
        why = "is no class: it is the only folder, and its images lie in folders of their own"
    raise DataFormatError(f"{folder}: {names[0]} {why}; give the folder of the class folders, {where}")


def _home_of_classes(folder: Path, files_of: Mapping[str, list[Path]]) -> Path:
    """Where the class folders are: the folder, or where these are none, below its only one or below the part held out."""
    names = sorted(name for name, files in files_of.items() if files)
    if len(names) > 1 and not (names := _parts_among(names)):
        return folder
    deep = [name for name in names if all(path.parent != folder / name for path in files_of[name])]
    if not deep:  # a picture right in it makes a folder a class
        return folder
    held_out = (name for part in _HELD_OUT for name in deep if part in name.lower())
    homes = []
    for one in dict.fromkeys((*held_out, *deep)):
        below: dict[str, list[Path]] = {}
        for path in files_of[one]:
            below.setdefault(path.relative_to(folder / one).parts[0], []).append(path)
        homes.append(home := _home_of_classes(folder / one, below))
        inside = (path.relative_to(home).parts for path in files_of[one] if path.is_relative_to(home))
        if len({parts[0] for parts in inside if len(parts) > 1}) > 1:  # one folder alone is no classes
            return home
    return homes[0]


def _parts_among(names: Sequence[str]) -> list[str]:
    """Those of several names that tell parts of a data set.

    Two that say nothing else, as ``train`` and ``test`` beside ``extra``, or all where they differ in nothing but the part, as
    ``seg_train`` and ``seg_test``.
    """
    rest = {name: _words(name) - _PARTS - _PLAIN_WORDS for name in names if _words(name) & _PARTS}
    plain = [name for name, words in rest.items() if not words]
    if len(plain) > 1:
        return plain
    return list(names) if len(rest) == len(names) and len(set(rest.values())) == 1 else []


def _words(name: str) -> frozenset[str]:
    return frozenset(word.lower() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", name))


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

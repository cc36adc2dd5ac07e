"""Which folders are classes: not the parts of a data set, not what lies around them, not masks."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from backdoor_audit.errors import DataFormatError
from backdoor_audit.printable import listed

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

TABLES = (".csv", ".tsv", ".jsonl")
AS_TABLE = "lay the images out in one folder per class, or write path and class of each into FILE.csv and give that"


def refuse_parts(folder: Path, files_of: Mapping[str, list[Path]]) -> None:
    """Raise `DataFormatError` where the folders are no classes, but hold the folders that are."""
    home = home_of_classes(folder, files_of)
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


def refuse_loose_parts(folder: Path, files_of: Mapping[str, list[Path]]) -> None:
    """Raise `DataFormatError` for a folder alone, or the parts of a data set, whose pictures lie in no class folders."""
    names = list(files_of)
    tables = sorted(name for name in os.listdir(folder) if name.lower().endswith((*TABLES, "_annotations.txt")))
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
        f"{'it' if alone else 'them'}{table} {AS_TABLE}{classes}"
    )


def home_of_classes(folder: Path, files_of: Mapping[str, list[Path]]) -> Path:
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
        homes.append(home := home_of_classes(folder / one, below))
        inside = (path.relative_to(home).parts for path in files_of[one] if path.is_relative_to(home))
        if len({parts[0] for parts in inside if len(parts) > 1}) > 1:  # one folder alone is no classes
            return home
    return homes[0]


def inner_classes(folder: Path, files_of: Mapping[str, list[Path]]) -> str:
    """What to tell where the images of every class lie in several folders of their own, which may be the classes; or nothing."""
    inner: set[str] = set()
    for name, files in files_of.items():
        below = {path.relative_to(folder / name).parts[0] for path in files if path.parent != folder / name}
        if len(below) < 2 or any(path.parent == folder / name for path in files):
            return ""
        inner |= below
    if all(_words(name) & (_PARTS | _PLAIN_WORDS | _DRAWN) for name in inner):
        return ""
    shown = listed(sorted(inner), 3)
    first = shlex.quote(str(folder / next(iter(files_of))))
    return (
        f"classes are {listed(list(files_of), 3)}, whose images lie in folders of their own ({shown}); where these are "
        f"the classes, give the folder that they lie in, as in --audit-data={first}"
    )


def drawn_over(of_class: Path, pictures: Sequence[Path]) -> set[Path]:
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

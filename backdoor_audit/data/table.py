"""Clean images from a table of paths and labels: a ``.csv`` file, or the metadata of an image folder of Hugging Face."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from backdoor_audit.data.clean_set import CleanSet, shown_names
from backdoor_audit.data.conversion import Reader, Wish, chosen
from backdoor_audit.data.folder import files_within
from backdoor_audit.data.naming import labels_of, named_in_order, names_in, refuse_many
from backdoor_audit.data.pictures import IMAGE_SUFFIXES, opened
from backdoor_audit.data.reading import Reading
from backdoor_audit.data.table_rows import WANTED, Rows, Table, table_in
from backdoor_audit.errors import DataFormatError
from backdoor_audit.printable import listed

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
_METADATA = ("metadata.csv", "metadata.jsonl")


def has_metadata(folder: Path) -> bool:
    """Whether a folder holds a table of its own pictures."""
    return any((folder / name).is_file() for name in _METADATA)


def from_metadata(folder: Path, wish: Wish, reading: Reading) -> CleanSet:
    """Pictures that ``metadata.csv`` or ``metadata.jsonl`` names, by ``file_name`` and ``label``. Raises `DataFormatError`."""
    table = next(folder / name for name in _METADATA if (folder / name).is_file())
    try:
        content = table_in(table, reading)
    except DataFormatError as error:
        if not any(entry.is_dir() for entry in folder.iterdir()):
            raise
        raise DataFormatError(f"{error}; where the folders beside it are the classes, move it elsewhere") from None
    named = {os.path.normpath(folder / name) for name, _ in content.rows}
    try:
        for path in files_within(folder, reading):
            if path != table and os.path.normpath(path) not in named:
                reading.leave(str(path.relative_to(folder)))
    except OSError as error:
        raise DataFormatError(f"{folder}: cannot be read ({error.strerror or error})") from None
    _refuse_outside(content.rows, folder, table, reading)
    return _read(content, folder, folder, wish, reading)


def _refuse_outside(rows: Rows, folder: Path, table: Path, reading: Reading) -> None:
    """Raise `DataFormatError` where a folder's own table leads out of the folder, by ``..``, an absolute path or a link."""
    top = os.path.join(os.path.realpath(folder), "")
    for number, (name, _) in enumerate(reading.timed(rows), 1):
        if _is_path(name) and not os.path.realpath(folder / name).startswith(top):
            raise DataFormatError(
                f"{folder}: {table.name} row {number} names {name[:160]!r}, which is not below the folder; accepted: names of "
                "files in it, or give a FILE.csv, whose paths may lie anywhere"
            )


def _is_path(name: str) -> bool:
    """Whether a file can have this path: there is one, without a null byte, and the file system can spell it."""
    try:
        return b"\0" not in os.fsencode(name) and bool(name)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        return False


def from_csv(path: Path, wish: Wish, reading: Reading) -> CleanSet:
    """Pictures that a file of `TABLE_SUFFIXES` names, beside it or by absolute paths. Raises `DataFormatError`."""
    return _read(_placed(table_in(path, reading), path, reading), path.parent, path, wish, reading)


def _placed(table: Table, source: Path, reading: Reading) -> Table:
    """With paths from the table's folder where names alone stand in it: of pictures in a folder beside it, or without ending.

    The first row decides. Raises `DataFormatError` where its name means several pictures.
    """
    first, beside = table.rows[0][0] if table.rows else "", source.parent
    if (
        not _is_path(first)
        or os.path.isabs(first)
        or (os.path.lexists(beside / first) and not (beside / first).is_dir())
    ):
        return table
    try:
        with os.scandir(beside) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return table  # what cannot be listed is told where it is read
    found: dict[tuple[int, int], tuple[str, str]] = {}  # by the file: one may go by several names
    for folder in ("", *folders):
        for ending in ("", *(spelt for suffix in IMAGE_SUFFIXES for spelt in (suffix, suffix.upper()))):
            with suppress(OSError):
                status = (beside / folder / f"{first}{ending}").stat()
                if stat.S_ISREG(status.st_mode):
                    found.setdefault((status.st_dev, status.st_ino), (folder, ending))
    if not found:
        return table
    if len(found) > 1:
        told = listed([os.path.join(folder, f"{first}{ending}") for folder, ending in found.values()], 3)
        raise DataFormatError(
            f"{source}: {first[:160]} may be {told}; write each path as it is from the table's own folder"
        )
    ((folder, ending),) = found.values()
    reading.note(f"pictures: {f'in {folder}/ ' * bool(folder)}beside the table{f', with {ending}' * bool(ending)}")
    return replace(table, rows=[(os.path.join(folder, f"{name}{ending}"), label) for name, label in table.rows])


def _read(table: Table, folder: Path, source: Path, wish: Wish, reading: Reading) -> CleanSet:
    rows = table.rows
    if not rows:
        raise DataFormatError(f"{source}: no rows; {WANTED}")
    strange = [name for name, _ in rows if not _is_path(name)]
    if strange:
        raise DataFormatError(f"{source}: {len(strange)} rows without a path that a file can have; {WANTED}")
    without = [name for name, label in rows if not label]
    if without:
        raise DataFormatError(
            f"{source}: {len(without)} rows without a label: {listed(without, 3)}; label them or leave them out"
        )
    found = {label for _, label in rows}
    called: tuple[str, ...] = ()
    if table.numbers and not named_in_order(sorted(found), wish):
        reading.note("labels: the numbers of the classes that stand beside their names")
        called = names_in({number: name for name, number in table.numbers.items()})
        table = table.by_numbers()
        rows = table.rows
        found = {label for _, label in rows}
    refuse_many(source, found | table.others, "labels")
    rows = _once(rows, folder, source, reading)
    label_of, names = labels_of(source, sorted(found), wish, reading, "labels", table.others)
    _refuse_absent(rows, folder, source, reading)
    shown = shown_names(names or called, str(source))
    labels = torch.tensor([label_of[label] for _, label in rows])

    def reader(index: int) -> Reader:
        return rows[index][0], partial(opened, folder / rows[index][0], reading)

    return CleanSet(*chosen(labels, reader, wish, reading), shown, str(source))


def _refuse_absent(rows: Rows, folder: Path, source: Path, reading: Reading) -> None:
    """Raise `DataFormatError` where not one picture is at its place: their paths are written in another way."""
    for name, _ in reading.timed(rows):
        if os.path.lexists(folder / name):
            return
    if len(rows) > 1:
        raise DataFormatError(
            f"{source}: none of its {len(rows)} pictures is there ({listed([rows[0][0]])}, ...); write each path as it is from "
            "the table's own folder, or absolute, with the ending of the file and / between folders"
        )


def _once(rows: Rows, folder: Path, source: Path, reading: Reading) -> Rows:
    """Every picture once: one that is searched with and held out as well would be no test. Raises `DataFormatError`."""
    label_of: dict[str, str] = {}
    kept: Rows = []
    for name, label in reading.timed(rows):
        first = label_of.setdefault(os.path.normpath(folder / name), label)
        if first != label:
            raise DataFormatError(
                f"{source}: {name[:160]} has the labels {listed([first, label])}; give every picture one label"
            )
        if len(label_of) > len(kept):
            kept.append((name, label))
    if len(kept) < len(rows):
        left = len(rows) - len(kept)
        reading.note(f"{left} row{'s' * (left > 1)} left out: the same picture again")
    return kept

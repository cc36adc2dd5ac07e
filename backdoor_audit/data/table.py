"""Clean images from a table of paths and labels: a ``.csv`` file, or the metadata of an image folder of Hugging Face."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from backdoor_audit.data.clean_set import CleanSet, choose, shown_names
from backdoor_audit.data.conversion import Wish, brief, decode
from backdoor_audit.data.folder import files_within, is_image
from backdoor_audit.data.naming import labels_of, refuse_many
from backdoor_audit.data.pictures import opened
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError, parsed_json, read_text
from backdoor_audit.printable import listed

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
_METADATA = ("metadata.csv", "metadata.jsonl")
_PATHS = (
    *("file_name", "path", "file", "filename", "filepath", "file_path", "image", "image_path", "img", "img_path"),
    *("image_file", "image_name", "img_name", "image_id", "id"),
)
_NUMBERS = ("class_id", "classid", "class_idx", "class_index", "label_id", "label_idx", "category_id", "target_id")
_LABELS = ("label", "labels", "class", "class_name", "label_name", "target", "category", "y")

_WANTED = (
    "accepted: a header with file_name (or path, file, image) and label (or class, target), or rows of path and label"
)
_SEPARATORS = ",;\t"
_WANTED_LINES = 'accepted: {"file_name": "a.png", "label": "cat"} in every line'

_WANTED_WORDS = "accepted: the path of a picture and its label in every line, between them a space or a comma"
_PART_COLUMNS = ("split", "partition", "subset")
_PARTS = (("test", "testing"), ("validation", "val", "valid", "dev", "eval"))

Rows = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Table:
    """Path and label of every row that is read, and the labels of rows of other parts: classes that these may lack."""

    rows: Rows
    others: frozenset[str] = frozenset()


def has_metadata(folder: Path) -> bool:
    """Whether a folder holds a table of its own pictures."""
    return any((folder / name).is_file() for name in _METADATA)


def from_metadata(folder: Path, wish: Wish, reading: Reading) -> CleanSet:
    """Pictures that ``metadata.csv`` or ``metadata.jsonl`` names, by ``file_name`` and ``label``. Raises `DataFormatError`."""
    table = next(folder / name for name in _METADATA if (folder / name).is_file())
    content = _content_of(table, reading)
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
    for number, (name, _) in enumerate(rows, 1):
        if number % 1024 == 0:
            reading.check_time()
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
    return _read(_content_of(path, reading), path.parent, path, wish, reading)


def _content_of(path: Path, reading: Reading) -> _Table:
    suffix = path.suffix.lower()
    return (_json_rows if suffix == ".jsonl" else _list_rows if suffix == ".txt" else _rows)(path, reading)


def _read(table: _Table, folder: Path, source: Path, wish: Wish, reading: Reading) -> CleanSet:
    rows = table.rows
    if not rows:
        raise DataFormatError(f"{source}: no rows; {_WANTED}")
    strange = [name for name, _ in rows if not _is_path(name)]
    if strange:
        raise DataFormatError(f"{source}: {len(strange)} rows without a path that a file can have; {_WANTED}")
    without = [name for name, label in rows if not label]
    if without:
        raise DataFormatError(
            f"{source}: {len(without)} rows without a label: {listed(without, 3)}; label them or leave them out"
        )
    found = {label for _, label in rows}
    refuse_many(source, found | table.others, "labels")
    rows = _once(rows, folder, source, reading)
    label_of, names = labels_of(source, sorted(found), wish, reading, "labels", table.others)
    _refuse_absent(rows, folder, source, reading)
    shown = shown_names(names, str(source))
    labels = torch.tensor([label_of[label] for _, label in rows])
    if wish.most is not None and wish.most < len(rows):
        chosen = choose(labels, wish.most, wish.seed)
        rows, labels = [rows[index] for index in chosen.tolist()], labels[chosen]
    readers = [(name, partial(opened, folder / name, reading)) for name, _ in rows]
    return CleanSet(decode(readers, wish, reading), labels, shown, str(source))


def _refuse_absent(rows: Rows, folder: Path, source: Path, reading: Reading) -> None:
    """Raise `DataFormatError` where not one picture is at its place: their paths are written in another way."""
    for number, (name, _) in enumerate(rows, 1):
        if number % 1024 == 0:
            reading.check_time()
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
    for number, (name, label) in enumerate(rows, 1):
        if number % 1024 == 0:
            reading.check_time()
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


def _list_rows(path: Path, reading: Reading) -> _Table:
    """Path and label of every line of a text: the last word is the label, unless it is a CSV file by another name."""
    lines = _lines(path)
    separated = any(mark in line for line in lines[:1] for mark in _SEPARATORS)
    if separated and not _is_list(lines, path.parent, reading):
        return _rows(path, reading)
    rows: Rows = []
    for number, line in enumerate(lines, 1):
        if number % 1024 == 0:
            reading.check_time()
        if not line.strip():
            continue
        row = _list_row(line)
        if row is None:
            raise DataFormatError(f"{path}: line {number}: {line.strip()[:40]}; {_WANTED_WORDS}")
        rows.append(row)
    return _Table(rows)


def _is_list(lines: Sequence[str], folder: Path, reading: Reading) -> bool:
    """Whether every line has a path and, as its last word, a label, and a picture is there: paths may hold what separates."""
    there = False
    for number, line in enumerate(filter(str.strip, lines), 1):
        if number % 1024 == 0:
            reading.check_time()
        row = _list_row(line)
        if row is None:
            return False
        there = there or os.path.exists(folder / row[0])
    return there


def _list_row(line: str) -> tuple[str, str] | None:
    """Path and label of a line; None for one that has no picture's name before its last word."""
    words = line.rsplit(maxsplit=1)
    if len(words) < 2 or not is_image(words[0].strip().rpartition("/")[2]):
        return None
    return words[0].strip(), _label(words[1])


def _rows(path: Path, reading: Reading) -> _Table:
    """Path and label of every row of a CSV file, whatever it separates them by."""
    text = _text(path)
    first = text.partition("\n")[0]
    delimiter = max(_SEPARATORS, key=first.count)
    rows: Rows = []
    parts: list[str] = []
    try:
        entries: Iterator[list[str]] = (
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row
        )
        header = next(entries, [])
        first_row = next(entries, [])
        columns, part = _columns(path, header, first_row), _part_column(header)
        entries = chain([first_row] if first_row else [], entries)
        if columns is None:
            columns = (0, 1)
            part = None
            entries = chain([header], entries)
        for number, row in enumerate(entries, 1):
            if number % 1024 == 0:
                reading.check_time()
            if len(row) <= max(columns):
                raise DataFormatError(
                    f"{path}: row {number} has {len(row)} columns, the first one {len(header)}; {_WANTED}"
                )
            rows.append((row[columns[0]].strip(), _label(row[columns[1]])))
            parts.append(row[part].strip() if part is not None and part < len(row) else "")
    except csv.Error as error:
        raise DataFormatError(f"{path}: not CSV ({brief(error)}); {_WANTED}") from None
    return _of_part(rows, parts, reading)


def _part_column(header: Sequence[str]) -> int | None:
    names = [name.strip().lower() for name in header]
    return next((names.index(name) for name in _PART_COLUMNS if name in names), None)


def _of_part(rows: Rows, parts: Sequence[str], reading: Reading) -> _Table:
    """The rows of the held-out part, however it is spelt, where the table tells several apart; which is told."""
    there = sorted({part for part in parts if part})
    if len({part.casefold() for part in there}) < 2:
        return _Table(rows)
    meant = [[part for part in there if part.casefold() in names] for names in _PARTS]
    chosen = next(filter(None, meant), None)
    if chosen is None:
        reading.note(f"read: the rows of all parts {listed(there, 5)}, none of them test or validation")
        return _Table(rows)
    reading.note(f"read: the rows of the part{'s' * (len(chosen) > 1)} {listed(chosen, 5)} of {listed(there, 5)}")
    kept, others = Rows(), set[str]()
    for row, part in zip(rows, parts, strict=True):
        if part in chosen:
            kept.append(row)
        elif row[1]:
            others.add(row[1])
    return _Table(kept, frozenset(others))


def _columns(path: Path, header: Sequence[str], row: Sequence[str]) -> tuple[int, int] | None:
    """Where path and label stand; None for two columns without a header."""
    places = {name.strip().lower(): place for place, name in reversed(list(enumerate(header)))}
    paths = [places[name] for name in _PATHS if name in places]
    label = _label_key({name: row[place] if place < len(row) else "" for name, place in places.items()})
    if paths and label is not None:
        return paths[0], places[label]
    if len(header) == 2 and is_image(header[0].strip().rpartition("/")[2]):
        return None
    raise DataFormatError(f"{path}: columns {listed([name.strip()[:40] for name in header], 8) or 'absent'}; {_WANTED}")


def _label_key(entry: Mapping[str, object]) -> str | None:
    """What the label is called in such an entry: numbers of classes come before names, which sorted would be numbered anew."""
    named, numbered = (next((key for key in keys if key in entry), None) for keys in (_LABELS, _NUMBERS))
    if named is None or numbered is None:
        return named or numbered
    return named if _label(str(entry[named])).isdecimal() else numbered


def _json_rows(path: Path, reading: Reading) -> _Table:
    """Path and label of every line of a JSON Lines file."""
    rows: Rows = []
    key: str | None = None
    parts: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        if number % 1024 == 0:
            reading.check_time()
        if not line.strip():
            continue
        try:
            entry = parsed_json(line)
        except UnreadableError as error:
            raise DataFormatError(f"{path}: line {number}: {brief(error)}; {_WANTED_LINES}") from None
        if key is None and isinstance(entry, dict):
            key = _label_key(entry)
        name, label = _first(entry, _PATHS), _first(entry, [key] if key else [])
        if not isinstance(name, str) or not isinstance(label, (str, int, float)):
            raise DataFormatError(f"{path}: line {number}; {_WANTED_LINES}")
        rows.append((name, _label(str(label))))
        part = _first(entry, _PART_COLUMNS)
        parts.append(part.strip() if isinstance(part, str) else "")
    return _of_part(rows, parts, reading)


def _first(entry: Any, keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None) if isinstance(entry, dict) else None


def _label(text: str) -> str:
    """The label as written; whole numbers that a table keeps as floats without their zeros."""
    whole = re.fullmatch(r"([0-9]+)\.0+", text.strip())
    return whole[1] if whole else text.strip()


def _lines(path: Path) -> list[str]:
    """Its lines; a name may hold what only Unicode takes for the end of one, such as U+2028."""
    return re.split(r"\r\n|\r|\n", _text(path))


def _text(path: Path) -> str:
    try:
        return read_text(path).removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    except UnreadableError as error:
        raise DataFormatError(f"{path}: cannot be read ({error}); {_WANTED}") from None

"""The rows of a table of paths and labels, from CSV, JSON Lines or a list."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from backdoor_audit.data.containers import SAVE
from backdoor_audit.data.conversion import brief
from backdoor_audit.data.folder import is_image
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError, parsed_json, read_text
from backdoor_audit.printable import listed

_PATHS = (
    *("filename", "path", "file", "filepath", "image", "imagepath", "img", "imgpath"),
    *("imagefile", "imagename", "imgname", "imageid", "id"),
)
_NUMBERS = ("classid", "classidx", "classindex", "labelid", "labelidx", "categoryid", "targetid")
_LABELS = ("label", "class", "classlabel", "classname", "labelname", "target", "category", "y")
_EITHER = ("label", "class", "target", "category", "y")  # may hold names or numbers
"""What columns are called but for case, what joins words (`_`, `-`, spaces) and the ``s`` of a plural."""

WANTED = (
    "accepted: a header with file_name (or path, file, image) and label (or class, target), or rows of path and label"
)
_SEPARATORS = ",;\t"
_MOST_SHOWN = 8  # columns
_WANTED_LINES = 'accepted: {"file_name": "a.png", "label": "cat"} in every line'
_WANTED_WORDS = "accepted: the path of a picture and its label in every line, between them a space or a comma"
_FLAGS = {
    "istest": ("test", "train"),
    "isvalid": ("valid", "train"),
    "isval": ("val", "train"),
    "istrain": ("train", "test"),
    "istraining": ("train", "test"),
}
"""Columns that say yes or no to a part, and which part each means."""
_PART_COLUMNS = (
    *("split", "partition", "subset", "dataset", "set", "phase", "usage", "trainortest", "traintest", "mode"),
    *_FLAGS,
)
_PARTS = (("test", "testing"), ("validation", "val", "valid", "dev", "eval"))

Rows = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """Path and label of every row that is read, and the labels of rows of other parts: classes that these may lack.

    ``numbers`` are those of the classes by their names, where labels are names and another column has them.
    """

    rows: Rows
    others: frozenset[str] = frozenset()
    numbers: Mapping[str, str] = field(default_factory=dict)

    def by_numbers(self) -> Table:
        """The same with the numbers of the classes as labels."""
        rows = [(path, self.numbers[label]) for path, label in self.rows]
        return Table(rows, frozenset(self.numbers[label] for label in self.others))


def table_in(path: Path, reading: Reading) -> Table:
    """The rows of a file, read as its ending says. Raises `DataFormatError`."""
    suffix = path.suffix.lower()
    return (_json_rows if suffix == ".jsonl" else _list_rows if suffix == ".txt" else _rows)(path, reading)


def _list_rows(path: Path, reading: Reading) -> Table:
    """Path and label of every line of a text: the last word is the label, unless it is a CSV file by another name."""
    lines = _lines(path)
    separated = any(mark in line for line in lines[:1] for mark in _SEPARATORS)
    if separated and not _is_list(lines, path.parent, reading):
        return _rows(path, reading)
    rows: Rows = []
    for number, line in enumerate(reading.timed(lines), 1):
        if not line.strip():
            continue
        row = _list_row(line)
        if row is None:
            raise DataFormatError(f"{path}: line {number}: {line.strip()[:40]}; {_WANTED_WORDS}")
        rows.append(row)
    return Table(rows)


def _is_list(lines: Sequence[str], folder: Path, reading: Reading) -> bool:
    """Whether every line has a path and, as its last word, a label, and a picture is there: paths may hold what separates."""
    there = False
    for line in reading.timed(filter(str.strip, lines)):
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


def _rows(path: Path, reading: Reading) -> Table:
    """Path and label of every row of a CSV file, whatever it separates them by."""
    text = _text(path)
    first = text.partition("\n")[0]
    delimiter = max(_SEPARATORS, key=first.count)
    rows: Rows = []
    parts: list[str] = []
    numbers: list[object] = []
    try:
        entries: Iterator[list[str]] = (
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row
        )
        header = next(entries, [])
        first_row = next(entries, [])
        columns, part = _columns(path, header, first_row), _part_column(header)
        numbered = _number_column(header, first_row)
        entries = chain([first_row] if first_row else [], entries)
        if columns is None:
            columns = (0, 1)
            part = numbered = None
            entries = chain([header], entries)
        for number, row in enumerate(reading.timed(entries), 1):
            if len(row) <= max(columns):
                raise DataFormatError(
                    f"{path}: row {number} has {len(row)} columns, the first one {len(header)}; {WANTED}"
                )
            rows.append((row[columns[0]].strip(), _label(row[columns[1]])))
            parts.append(_part(header[part], row[part]) if part is not None and part < len(row) else "")
            numbers.append(row[numbered] if numbered is not None and numbered < len(row) else "")
    except csv.Error as error:
        raise DataFormatError(f"{path}: not CSV ({brief(error)}); {WANTED}") from None
    return _numbered(rows, parts, numbers, "" if numbered is None else header[numbered], reading)


def _number_column(header: Sequence[str], row: Sequence[str]) -> int | None:
    key = _number_key(dict(zip(header, row, strict=False)))
    return None if key is None else header.index(key)


def _number_key(entry: Mapping[str, object]) -> str | None:
    """What else in an entry may be the number of the class, where the label is a name; None where nothing is."""
    label = _label_key(entry)
    if label is None or _counts(entry[label]):
        return None
    if (numbered := _first(entry, _NUMBERS)) is not None:
        return numbered
    known = [key for key in _EITHER if key != "y" or _first(entry, ("x",)) is None]  # a place in the picture
    return _first((key for key, value in entry.items() if _counts(value)), known)


def _numbered(rows: Rows, parts: Sequence[str], numbers: Sequence[object], key: str, reading: Reading) -> Table:
    """The rows of the held-out part, with the numbers that stand beside the names of their classes.

    Numbers of which each goes with one name are kept beside the names. Others are the labels where their column is called so.
    """
    counts = [_label(str(number)) for number in numbers]
    pairs = {(label, number) for (_, label), number in zip(rows, counts, strict=True)}
    single = len(pairs) == len({name for name, _ in pairs}) == len({number for _, number in pairs})
    if single and all(name and _counts(number) for name, number in pairs):
        return replace(_of_part(rows, parts, reading), numbers=dict(pairs))
    if _first((key,), _NUMBERS) is not None:
        rows = [(path, number) for (path, _), number in zip(rows, counts, strict=True)]
    return _of_part(rows, parts, reading)


def _counts(value: object) -> bool:
    """Whether it is a whole number from 0 on."""
    return not isinstance(value, bool) and _label(str(value)).isdecimal()


def _part_column(header: Sequence[str]) -> int | None:
    name = _first(header, _PART_COLUMNS)
    return None if name is None else header.index(name)


def _part(column: str, value: object) -> str:
    """The part that an entry of such a column means; empty for none."""
    text = str(value).strip() if isinstance(value, (str, int, float)) else ""
    if (flag := _FLAGS.get(_plain(column))) is None:
        return text if isinstance(value, str) else ""
    yes, no = text.casefold() in ("true", "yes", "1", "1.0"), text.casefold() in ("false", "no", "0", "0.0")
    return flag[0] if yes else flag[1] if no else ""


def _of_part(rows: Rows, parts: Sequence[str], reading: Reading) -> Table:
    """The rows of the held-out part, however it is spelt, where the table tells several apart; which is told."""
    there = sorted({part for part in parts if part})
    if len({part.casefold() for part in there}) < 2:
        return Table(rows)
    meant = [[part for part in there if part.casefold() in names] for names in _PARTS]
    chosen = next(filter(None, meant), None)
    if chosen is None:
        reading.note(f"read: the rows of all parts {listed(there, 5)}, none of them test or validation")
        return Table(rows)
    reading.note(f"read: the rows of the part{'s' * (len(chosen) > 1)} {listed(chosen, 5)} of {listed(there, 5)}")
    kept, others = Rows(), set[str]()
    for row, part in zip(rows, parts, strict=True):
        if part in chosen:
            kept.append(row)
        elif row[1]:
            others.add(row[1])
    return Table(kept, frozenset(others))


def _columns(path: Path, header: Sequence[str], row: Sequence[str]) -> tuple[int, int] | None:
    """Where path and label stand; None for columns without a header: path, label, and perhaps numbers, such as those of a box."""
    places = {name: place for place, name in reversed(list(enumerate(header)))}
    picture = _first(header, _PATHS)
    label = _label_key(places)
    if picture is not None and label is not None:
        return places[picture], places[label]
    if len(header) >= 2 and is_image(header[0].strip().rpartition("/")[2]):
        boxed = not _counts(header[1]) and all(map(_counts, header[2:]))
        if len(header) == 2 or boxed:
            return None
    single = zip(header, row, strict=False)
    classes = [name for name, value in single if name != picture and _counts(value) and float(value) <= 1]
    if picture is not None and len(classes) > 1:
        told = listed([name[:40] for name in classes], 3)
        raise DataFormatError(
            f"{path}: no column of labels; of one column of 0 and 1 for each class ({told}) make a column label with its name or "
            f"number; {WANTED}"
        )
    pixels = f"; where it holds the pixels, {SAVE}" if picture is None and len(header) > _MOST_SHOWN else ""
    shown = listed([name.strip()[:40] for name in header], _MOST_SHOWN)
    raise DataFormatError(f"{path}: columns {shown or 'absent'}; {WANTED}{pixels}")


def _label_key(entry: Mapping[str, object]) -> str | None:
    """What the label is called in such an entry, be it a name or a number."""
    return _first(entry, _LABELS) or _first(entry, _NUMBERS)


def _json_rows(path: Path, reading: Reading) -> Table:
    """Path and label of every line of a JSON Lines file."""
    rows: Rows = []
    path_key = label_key = part_key = number_key = None
    parts: list[str] = []
    numbers: list[object] = []
    for number, line in enumerate(reading.timed(_lines(path)), 1):
        if not line.strip():
            continue
        try:
            entry = parsed_json(line)
        except UnreadableError as error:
            raise DataFormatError(f"{path}: line {number}: {brief(error)}; {_WANTED_LINES}") from None
        entry = entry if isinstance(entry, dict) else {}
        if label_key is None:
            label_key, number_key = _label_key(entry), _number_key(entry)
        path_key = path_key if path_key in entry else _first(entry, _PATHS)
        name, label = entry.get(path_key), entry.get(label_key)
        if not isinstance(name, str) or not isinstance(label, (str, int, float)):
            raise DataFormatError(f"{path}: line {number}: {line.strip()[:80]}; {_WANTED_LINES}")
        rows.append((name, _label(str(label))))
        numbers.append(entry.get(number_key, ""))
        part_key = part_key if part_key in entry else _first(entry, _PART_COLUMNS)
        parts.append(_part(part_key, entry[part_key]) if part_key is not None and part_key in entry else "")
    return _numbered(rows, parts, numbers, number_key or "", reading)


def _plain(name: str) -> str:
    """The name of a column without case and what joins its words."""
    return re.sub(r"[\W_]+", "", name.lower())


def _first(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first name among these that is called as one of those that are wanted, in the order of these."""
    called: dict[str, str] = {}
    plurals: dict[str, str] = {}
    for name in names:
        plain = _plain(name)
        called.setdefault(plain, name)
        plurals.setdefault(plain.removesuffix("s"), name)
    return next((some[one] for one in wanted for some in (called, plurals) if one in some), None)


def _label(text: str) -> str:
    """The label as written; whole numbers that a table keeps as floats without their zeros."""
    whole = re.fullmatch(r"([0-9]+)\.0+", text.strip())
    return whole[1] if whole else text.strip()


def _lines(path: Path) -> list[str]:
    """Its lines; a name may hold what only Unicode takes for the end of one, such as U+2028."""
    return re.split(r"\r\n|\r|\n", _text(path))


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except UnreadableError as error:
        raise DataFormatError(f"{path}: cannot be read ({error}); {WANTED}") from None

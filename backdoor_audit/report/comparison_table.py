"""The difference of two models as a table of text: verdicts, accuracy, every anomaly index, repairs, then what got worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from backdoor_audit.baseline.difference import Change, Difference, index_table, number_text
from backdoor_audit.baseline.signature import Baseline

_CLASS, _CELL = 22, 14  # columns
_MARKS = {"worse": "!", "better": "+", "unchanged": " "}


def lines(before: Baseline, after: Baseline, found: Difference) -> list[str]:
    """The difference for a terminal; what a terminal would obey in a name of a stranger is written out."""
    return [
        "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)
        for line in _lines(before, after, found)
    ]


def _lines(before: Baseline, after: Baseline, found: Difference) -> Iterator[str]:
    compared = {change.item: change for change in (*found.worse, *found.better, *found.unchanged)}
    changes = {item: compared[item] for item in {**after.findings, **before.findings} if item in compared}
    marks = {change.item: _MARKS[side] for side in ("worse", "better", "unchanged") for change in getattr(found, side)}
    yield f"{'':24}{'before':>28}{'after':>28}"
    for title, there, here in (
        ("model", before.model["file"], after.model["file"]),
        ("architecture", before.model["architecture"], after.model["architecture"]),
        ("verdict", before.verdict, after.verdict),
    ):
        yield f"{title:24}{_cut(there):>28}{_cut(here):>28}"
    for change in changes.values():
        if change.statistic == "clean_accuracy":
            yield f"{'clean accuracy':24}{_number(change.before):>28}{_number(change.after):>28} {marks[change.item]}"
    yield from _indices(changes, marks, after)
    yield from _repairs(before, after)
    for title in ("worse", "better"):
        if getattr(found, title):
            yield from ("", title)
        yield from (f"  {change.text}" for change in getattr(found, title))
    yield from (f"note: {note}" for note in found.notes)
    yield ""
    yield f"{len(found.worse)} worse, {len(found.better)} better, {len(found.unchanged)} neither beyond the noise"


def _indices(changes: Mapping[str, Change], marks: Mapping[str, str], model: Baseline) -> Iterator[str]:
    """Anomaly indices: a row for each class, two columns for each detector."""
    table = {
        detector: {row.removeprefix("from_"): change for row, change in rows.items()}
        for detector, rows in index_table(changes.values()).items()
    }
    if not table:
        return
    yield ""
    yield f"anomaly index, before and after ({_MARKS['worse']} worse, {_MARKS['better']} better; source_scan: from that class)"
    yield f"{'':{_CLASS}}" + "".join(f"{detector[: _CELL - 2]:>{_CELL}}" for detector in table)
    for row in dict.fromkeys(row for cells in table.values() for row in cells):
        cells = [table[detector].get(row) for detector in table]
        texts = [f"{_index(cell.before)} {_index(cell.after)}{marks[cell.item]}" if cell else "" for cell in cells]
        yield f"{_cut(model.row_name(row), _CLASS):{_CLASS}}" + "".join(f"{text:>{_CELL}}" for text in texts)


def _repairs(before: Baseline, after: Baseline) -> Iterator[str]:
    """What repairs left of the attack success rate and of the accuracy."""
    names = sorted({*before.repairs, *after.repairs})
    if names:
        yield ""
        yield f"{'after repair':36}{'attack success rate':>24}{'clean accuracy':>24}"
    for name in names:
        scores = [model.repairs[name]["after"] if name in model.repairs else {} for model in (before, after)]
        columns = [
            " -> ".join(_number(entry.get(key)) for entry in scores)
            for key in ("attack_success_rate", "clean_accuracy")
        ]
        yield f"{name:36}" + "".join(f"{column:>24}" for column in columns)


def _index(value: float | None) -> str:
    return number_text(value, 2, none="-")


def _number(value: float | None) -> str:
    return number_text(value, 3, none="-")


def _cut(text: object, width: int = 26) -> str:
    shown = str(text)
    return shown if len(shown) <= width else f"...{shown[3 - width :]}"

"""From what classes are called to labels: by given names, by an order, by the model's own names, or as they are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_audit.data.clean_set import MOST_CLASSES
from backdoor_audit.data.conversion import Wish
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError, OptionError
from backdoor_audit.files import UnreadableError, read_json, read_text
from backdoor_audit.printable import listed

_NUMBERS = tuple(
    f"{first}{to}{second}"
    for word in ("class", "label")
    for number in ("idx", "id", "index")
    for to in ("_to_", "2")
    for first, second in ((word, number), (number, word))
)
NAMED = (
    *(*_NUMBERS, "id2name", "id_to_name", "idx_to_name", "label_map", "label_mapping", "class_map", "class_mapping"),
    *("classes", "class_names", "label_names", "CLASSES", "categories", "classnames", "class_list", "label_list"),
    *("target_names", "labels", "names", "vocab"),
)
"""Under which keys checkpoints, headers and JSON files have the names of the classes."""

_NUMBER_FIRST = re.compile(r"['\"]?(?P<number>[0-9]{1,6})['\"]?(?:\s*[:,;\t]\s*|\s+)(?P<name>[\w'\"].*?),?")
_NUMBER_LAST = re.compile(r"(?P<name>.*?\S)(?:\s*[:,;\t]\s*|\s+)(?P<number>[0-9]{1,6}),?")
_SYNSET = re.compile(r"n[0-9]{8}(?=\s)")  # of WordNet, as ImageNet's folders are called; a line goes on with its words
_NAMES = "accepted: names between commas, a text file with one name per line, or JSON (a list, id2label, class_to_idx)"


def names_from(text: str) -> tuple[str, ...]:
    """The names of classes that an option gives, in the order of the model's scores: between commas, or in a file.

    Raises `OptionError`.
    """
    if "," in text:
        # a list of JSON or Python
        bare = text.strip()[1:-1] if text.strip()[:1] + text.strip()[-1:] in ("[]", "()") else ""
        names = tuple(part.strip().strip("'\"" * bool(bare)) for part in (bare or text).split(","))
    else:
        path = Path(text)
        try:
            if path.suffix.lower() == ".json":
                names = names_in(read_json(path)) or ()
            else:
                names = _names_in_lines([line.strip() for line in read_text(path).rstrip().splitlines()])
        except UnreadableError as error:
            raise OptionError(f"--audit-class-names: {text} cannot be read ({error}); {_NAMES}") from None
    twice = [name for name, times in Counter(names).items() if times > 1]
    if not 2 <= len(names) <= MOST_CLASSES or "" in names or twice:
        what = (
            f"{listed(twice, 3) or 'an empty name'} more than once" if twice else f"{len(names)} names" if names else ""
        )
        what = "an empty name" if "" in names else what or "no names for the numbers from 0 on"
        raise OptionError(f"--audit-class-names: {what} in {text[:200]}; {_NAMES}, each class once")
    return names


def names_in(content: object) -> tuple[str, ...]:
    """Names by label in what JSON files and checkpoints hold; empty for anything that does not name every class once.

    A list of names; a mapping of numbers to names, or of names to numbers; or a mapping with one of these under one of `NAMED`.
    Of several names for a number, as in ``imagenet_class_index.json``, the first: folders are called so.
    """
    inner = map(content.get, NAMED) if isinstance(content, Mapping) else ()
    content = next((named for named in inner if isinstance(named, (Mapping, list, tuple))), content)
    if isinstance(content, (list, tuple)):
        names = tuple(name for name in content if isinstance(name, str))
        return names if len(names) == len(content) and 2 <= len(set(names)) == len(names) else ()
    if not isinstance(content, Mapping):
        return ()
    by_number: dict[int, str] = {}
    for key, value in content.items():
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if isinstance(name, list) and name:
            name = name[0]
        if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 9:
            number = int(number)
        if not isinstance(name, str) or not isinstance(number, int) or isinstance(number, bool):
            return ()
        by_number[number] = name
    complete = by_number.keys() == set(range(len(content))) and 2 <= len(set(by_number.values())) == len(content)
    return tuple(by_number[number] for number in range(len(content))) if complete else ()


def _names_in_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """The names in the lines of a text: where each has one of the numbers from 0 on, what stands beside it.

    A first line without a number is then a header. Of lines that begin with a synset, that.
    """
    for line in (_NUMBER_FIRST, _NUMBER_LAST):
        for some in (lines, lines[1:]):
            found = [line.fullmatch(text) for text in some]
            by_number = {int(one["number"]): one["name"].strip().strip("'\"") for one in found if one}
            if by_number.keys() == set(range(len(found))) and len(set(by_number.values())) == len(found) > 1:
                return tuple(by_number[number] for number in range(len(found)))
    synsets = [_SYNSET.match(text) for text in lines]
    return tuple(found[0] for found in synsets if found) if all(synsets) else tuple(lines)


def labels_of(
    source: object,
    found: Sequence[str],
    wish: Wish,
    reading: Reading,
    what: str = "folders",
    others: Collection[str] = (),
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each name that was found in the data, and the names of the classes.

    Given names that are all there are decide; then the order that is asked for; then the names in the model's file, where
    they have all. Else names that are numbers are the labels, and sorted names give them. Names in ``others`` are of classes
    that only the rest of the data has; they take their place where names are sorted. Raises `DataFormatError`.
    """
    refuse_many(source, found, what)
    every = sorted({*found, *others})
    given = wish.class_names or ()
    numbers = all(map(_counts, found))
    if place := places(found, given):
        return place, given
    if what == "labels" and not (numbers or wish.order or places(found, wish.model_names)):
        _refuse_odd_numbers(source, found)
    if given and not numbers:
        known = frozenset(given)
        strange = [name for name in found if name not in known]
        raise DataFormatError(
            f"{source}: {what} {listed(strange)} are not in class_names ({listed(given)}); name the model's classes as the "
            f"{what} do"
        )
    if wish.order:
        strange = [name for name in every if not _counts(name)]
        if wish.order == "number" and strange:
            raise DataFormatError(
                f"{source}: --audit-class-order=number, but {what} {listed(strange, 3)} are no numbers; pass text, or names by "
                "--audit-class-names"
            )
        if not strange:
            _numbers_of(source, every, what)
        ranked = sorted(every, key=_key(wish.order))
        return {name: label for label, name in enumerate(ranked)}, given or tuple(ranked)
    if place := places(found, wish.model_names):
        reading.note("class order: by the names in the model's file")
        return place, given or wish.model_names
    if numbers:
        return _numbers_of(source, found, what), given
    return {name: label for label, name in enumerate(every)}, tuple(every)


def relabelled(
    labels: NDArray[Any], names: Sequence[object], wish: Wish, reading: Reading
) -> tuple[NDArray[Any], tuple[object, ...]]:
    """Labels that the data has as numbers, and the names of the classes, by the same rules as `labels_of`.

    What is no array of counting numbers is left to whoever checks labels.
    """
    given = wish.class_names
    shown = tuple(names) if given is None else given
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or int(labels.min()) < 0:
        return labels, shown
    used, place_of = np.unique(labels, return_inverse=True)
    own = [str(names[label]) if label < len(names) else str(label) for label in used.tolist()]
    place: dict[str, int] = {}
    if names and (place := places(own, given or ())):
        shown = given or ()
    elif wish.order:
        ranked = sorted(used.tolist(), key=lambda label: _key(wish.order)(str(label)))
        called = dict(zip(used.tolist(), own, strict=True))
        place = {called[label]: rank for rank, label in enumerate(ranked)}
        shown = given or tuple(called[label] for label in ranked)
        if len(place) < len(used):  # two classes of one name
            place, shown = {}, tuple(names)
    elif names and (place := places(own, wish.model_names)):
        reading.note("class order: by the names in the model's file")
        shown = given or wish.model_names
    if not place:
        return labels, shown
    return np.array([place[name] for name in own], dtype=np.int64)[place_of.reshape(-1)], shown


def named_in_order(found: Sequence[str], wish: Wish) -> bool:
    """Whether names are given, which have to have these, or those in the model's file say which class each of them is."""
    return bool(wish.class_names or (not wish.order and places(found, wish.model_names)))


def places(found: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """The place of each name among ``names``; empty unless all are there, exactly or but for case, hyphens and underscores."""
    for told in (str, _folded):
        there = {told(name): place for place, name in reversed(list(enumerate(names)))}
        if names and all(told(name) in there for name in found) and len({told(name) for name in found}) == len(found):
            return {name: there[told(name)] for name in found}
    return {}


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def _key(order: str) -> Callable[[str], Any]:
    return _number if order == "number" else str


def _counts(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _number(name: str) -> int:
    """What a name of digits counts; Python reads no more than 4,300 of them, be they zeros."""
    return int(name.lstrip("0") or "0")


def refuse_many(source: object, found: Collection[str], what: str) -> None:
    """Raise `DataFormatError` for more names than there may be classes: naming them would take long."""
    if len(found) > MOST_CLASSES:
        raise DataFormatError(
            f"{source}: {len(found)} different {what}; accepted: at most {MOST_CLASSES}, one for each class"
        )


def _refuse_odd_numbers(source: object, found: Sequence[str]) -> None:
    """Raise `DataFormatError` where labels are numbers of which some do not count: as names they would number all anew."""
    try:
        odd = [name for name in found if not (math.isfinite(float(name)) and _counts(name))]
    except ValueError:  # names
        return
    raise DataFormatError(
        f"{source}: label {odd[0][:40]}; labels count from 0, in whole numbers; correct these rows or leave them out, or pass "
        "--audit-class-order=text where labels are names"
    )


def _numbers_of(source: object, found: Sequence[str], what: str) -> dict[str, int]:
    large = [name for name in found if len(name.lstrip("0")) > 6 or _number(name) >= MOST_CLASSES]
    if large:
        raise DataFormatError(
            f"{source}: {what} {listed(large)} are numbers and so the labels; accepted: 0 to {MOST_CLASSES - 1}; give names"
        )
    numbers = {name: _number(name) for name in found}
    counts = Counter(numbers.values())
    twice = [name for name, number in numbers.items() if counts[number] > 1]
    if twice:
        raise DataFormatError(f"{source}: {what} {listed(twice)} are the same class; name each class once")
    return numbers

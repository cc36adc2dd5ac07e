"""Mean and std that a file has for the images of its network: in its settings, or in what stands in front of the network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from backdoor_audit.model.loading import numpy_values
from backdoor_audit.model.loading.header import LARGEST_NUMBER
from backdoor_audit.model.loading.pickle_values import Instance, Named, StoredTensor

Numbers = tuple[float, ...]
Told = tuple[Numbers, Numbers, str]
"""Mean and std for pixels in [0, 1], and a remark where the file had them for others."""

Read = Callable[[Mapping[str, Any]], Mapping[str, Tensor]]
"""Gives the numbers of tensors that were only described."""

TO_255 = ", which is for pixels in 0 to 255, divided by 255"
TURNED = (
    ", turned, as the file has it for blue, green, red, in which order the network takes its images: where nothing in --arch "
    "does that, pass a factory with images.flip(1) in its forward pass"
)
_TO_RGB = re.compile(r"to_rgb['\"]?\s*[=:]\s*(True|False)")
_MOST = 4  # channels
_NUMBERS = (int, float, np.floating)
_LARGEST = 1024  # bytes that are read for them
_KIND = re.compile(r"(?P<place>(?:.*[._-])?)(?P<kind>mean|std|mu|sigma)s?", re.IGNORECASE | re.DOTALL)
_SPREADS = ("std", "sigma")
_OF_IMAGES = re.compile(r"(?:pixel|image|img|norm\w*|data\w*|input|rgb|channel)[_-](?:mean|std)s?", re.IGNORECASE)
_SETTINGS = re.compile(r".*(?:norm|transform|preproc|data|image|img|input|stat).*", re.IGNORECASE | re.DOTALL)
_TEXTS = ("cfg", "config")  # under which OpenMMLab keeps its settings as the text of a file
_LIST = r"\s*=\s*\[([-+0-9.eE,\s]{1,200})\]"
_IN_TEXT = re.compile(rf"\bmean{_LIST}\s*,\s*(?:#.*)?\s*std{_LIST}")
_LONGEST_TEXT = 1_000_000
_LONGEST_LIST = 200  # characters


def pair(names: Iterable[object]) -> tuple[str, str] | None:
    """The names of mean and std among these, in the same place; None without both."""
    found: dict[str, dict[bool, str]] = {}
    for name in names:
        if isinstance(name, str) and len(name) < 1000 and (told := _KIND.fullmatch(name)):
            found.setdefault(told["place"].lower(), {})[told["kind"].lower() in _SPREADS] = name
    return next(((both[False], both[True]) for both in found.values() if len(both) == 2), None)


def in_settings(
    places: Iterable[Mapping[object, object]], parts: Iterable[Mapping[object, object]], read: Read | None
) -> tuple[Told, bool]:
    """Mean and std, empty where the file has none, and whether it has some that are not read, as arrays of numpy are.

    ``places`` are its settings, in which they may be called just so; in other ``parts`` they have to be called those of images.
    """
    unread = False
    for mean, std, where in _pairs(places, parts):
        found = usable(numbers_of(mean, read), numbers_of(std, read))
        if found is not None:
            return (_turned(found) if _takes_blue_first(where) else found), False
        unread = unread or (_is_unread(mean) and _is_unread(std))
    return ((), (), ""), unread


def _pairs(
    places: Iterable[Mapping[object, object]], parts: Iterable[Mapping[object, object]]
) -> Iterator[tuple[object, object, object]]:
    """Mean, std, and the settings that they stand in."""
    for place in places:
        yield place.get("mean"), place.get("std"), place
    for part in parts:
        if names := pair(key for key in part if isinstance(key, str) and _OF_IMAGES.fullmatch(key)):
            yield part[names[0]], part[names[1]], part
        for key, inner in part.items():
            if not isinstance(key, str):
                continue
            if isinstance(inner, str) and key in _TEXTS:
                yield from _in_text(inner[:_LONGEST_TEXT])
            elif _SETTINGS.fullmatch(key[:200]):
                yield from _within(inner)


def _within(settings: object) -> Iterator[tuple[object, object, object]]:
    """Mean and std of settings, of a transform, of one of several transforms, or just the two."""
    inner = _entries(settings)
    several = inner.get("transforms") if isinstance(inner, Mapping) else None
    for part in (inner, *map(_entries, several if isinstance(several, list) else ())):
        both = [part.get("mean"), part.get("std")] if isinstance(part, Mapping) else part
        if isinstance(both, (list, tuple)) and len(both) == 2 and not any(map(_is_single, both)):
            yield both[0], both[1], part


def _entries(value: object) -> object:
    """The attributes of an object, whether it was only read or is one; anything else as it is."""
    return value.attributes if isinstance(value, Instance) else getattr(value, "__dict__", value)


def _takes_blue_first(settings: object) -> bool:
    """Whether settings beside a mean say that it and the network are for blue, green, red."""
    if isinstance(settings, str):
        return set(_TO_RGB.findall(settings)) == {"False"}
    if not isinstance(settings, Mapping):
        return False
    orders = (settings.get(key) for key in ("channel_order", "color_order", "color_space", "input_space"))
    return any(settings.get(key) is False for key in ("to_rgb", "bgr_to_rgb")) or "bgr" in (
        order.lower() for order in orders if isinstance(order, str)
    )


def _turned(told: Told) -> Told:
    mean, std, remark = told
    return mean[::-1], std[::-1], remark + TURNED


def _is_unread(value: object) -> bool:
    return any(isinstance(part, Named) for part in (value if isinstance(value, (list, tuple)) else (value,)))


def _is_single(value: object) -> bool:
    """Whether it is one plain number, which may count anything."""
    return isinstance(value, (int, float))


def _in_text(text: str) -> Iterator[tuple[object, object, object]]:
    """What a configuration in Python says, where it says one thing alone."""
    found = {(mean, std) for mean, std in _IN_TEXT.findall(text)}
    if len(found) == 1:
        mean, std = found.pop()
        yield _numbers_in(mean), _numbers_in(std), text


def _numbers_in(text: str) -> list[float]:
    try:
        return [float(part) for part in re.split(r"[,;\s]+", text) if part]
    except ValueError:
        return []


def in_front(root: Instance | None, prefix: str, read: Read) -> Told | None:
    """Mean and std that a whole pickled module keeps as plain values around the network that lies in it at ``prefix``."""
    part: object = root
    for step in prefix.split("."):  # the last one is empty
        if not isinstance(part, Instance):
            break
        children = part.attributes.get("_modules")
        inner = children if isinstance(children, Mapping) else {}
        for module in (part, *inner.values()):
            names = pair(module.attributes) if isinstance(module, Instance) else None
            values = [module.attributes[name] for name in names or ()]
            found = usable(*(numbers_of(value, read) for value in values)) if names else None
            if found is not None and not any(map(_is_single, values)):
                return found
        part = inner.get(step)
    return None


def numbers_of(value: object, read: Read | None = None) -> Numbers:
    """A number or some of them, one for each channel, whatever they are kept in; empty for anything else."""
    if isinstance(value, StoredTensor):
        small = value.storage is not None and value.storage.nbytes <= _LARGEST and not value.oddity
        value = read({"": value})[""] if small and read is not None else None
    value = numpy_values.listed(value)
    flat: Any = getattr(value, "tolist", None)  # of a tensor or an array of numpy
    if flat is not None and 0 < math.prod(getattr(value, "shape", (0,))) <= _MOST:
        value = [float(f"{number:.7g}") for number in value.reshape(-1).tolist()]  # type: ignore[attr-defined]
    return plain_numbers(value)


def plain_numbers(value: object) -> Numbers:
    """The same of a plain value: a number, a list of them, or such a list as a text."""
    if isinstance(value, str):
        value = _numbers_in(value[:_LONGEST_LIST].strip().strip("[]()"))
    parts = value if isinstance(value, (list, tuple)) else (value,)
    numbers = [float(part) for part in parts[:_MOST] if isinstance(part, _NUMBERS) and type(part) is not bool]
    numbers = [number for number in numbers if abs(number) < 1e6]
    return tuple(numbers) if len(numbers) == len(parts) and all(map(math.isfinite, numbers)) else ()


def usable(mean: Numbers, std: Numbers) -> Told | None:
    """Mean and std as they are used; None where they are none."""
    remark = ""
    of_bytes = max(std, default=0) > LARGEST_NUMBER or set(std) == {1.0}  # networks of Caffe divide by nothing
    if max(mean, default=0) > LARGEST_NUMBER and of_bytes:
        mean, std = (tuple(value / 255 for value in numbers) for numbers in (mean, std))
        remark = TO_255
    fits = bool(mean) and len(mean) == len(std)
    return (mean, std, remark) if fits and all(0 <= at <= 1 for at in mean) and all(0 < at <= 1 for at in std) else None


def of_channels(shape: Collection[int], channels: int) -> bool:
    """Whether a tensor of that shape holds one number for each channel."""
    return math.prod(shape) == channels and max(shape, default=1) == channels

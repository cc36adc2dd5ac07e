"""Clean images from a class of ``torchvision.datasets``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image

from backdoor_audit.data.clean_set import CleanSet, checked_labels, choose
from backdoor_audit.data.conversion import ACCEPTED, Wish, brief, decode
from backdoor_audit.errors import DataFormatError


def from_torchvision(source: str, wish: Wish) -> CleanSet:
    """Images of ``torchvision:NAME?root=DIR&...``. Raises `DataFormatError`."""
    dataset = _torchvision_dataset(source)
    kept = (getattr(dataset, key, None) for key in ("targets", "labels", "_labels"))
    labels = next((values for values in kept if values is not None), None)
    try:
        if labels is None:
            labels = [dataset[index][1] for index in range(len(dataset))]
        classes = torch.as_tensor(np.asarray(labels))
    except Exception as error:  # a data set of whatever kind
        raise DataFormatError(f"{source}: cannot be read ({brief(error)}); {ACCEPTED}") from None
    classes = checked_labels(classes, source)
    if len(classes) != len(dataset):
        raise DataFormatError(
            f"{source}: {len(dataset)} images and {len(classes)} labels; give a set of labelled images"
        )
    indices = choose(classes, min(wish.most or len(classes), len(classes)), wish.seed)
    readers = [(f"image {index}", _item_opener(dataset, index)) for index in indices.tolist()]
    images = decode(readers, source, wish.resize, wish.channels)
    names = wish.class_names if wish.class_names is not None else getattr(dataset, "classes", ())
    return CleanSet.of(images, classes[indices], _plain_names(names), source)


def _plain_names(names: Iterable[object]) -> tuple[str, ...]:
    return tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)  # ImageNet has tuples of synonyms


def _item_opener(dataset: Any, index: int) -> Callable[[], Image.Image]:
    def item() -> Image.Image:
        image = dataset[index][0]
        if not isinstance(image, Image.Image):
            raise TypeError(f"{type(image).__name__} instead of an image")
        return image

    return item


def _torchvision_dataset(source: str) -> Any:
    from torchvision import datasets  # noqa: PLC0415 - a second of imports that most runs do not need

    name, _, query = source.removeprefix("torchvision:").partition("?")
    known = {
        key: value
        for key in dir(datasets)
        if inspect.isclass(value := getattr(datasets, key)) and issubclass(value, datasets.VisionDataset)
    }
    if name not in known:
        close = difflib.get_close_matches(name.lower(), [key.lower() for key in known], n=3)
        likely = [key for key in known if key.lower() in close]
        hint = f"; did you mean {' or '.join(likely)}?" if likely else "; see torchvision.datasets for the names"
        raise DataFormatError(f"{source}: torchvision has no data set {name!r}{hint}")
    given = dict(parse_qsl(query, keep_blank_values=True))
    takes = inspect.signature(known[name]).parameters
    accepted = [key for key in ("root", "train", "split", "download") if key in takes]
    strange = [key for key in given if key not in accepted]
    if strange or ("root" in takes and not given.get("root")):
        what = f"{name} has no option {strange[0]!r}" if strange else "root is missing"
        raise DataFormatError(
            f"{source}: {what}; accepted: torchvision:{name}?{'&'.join(f'{key}=' for key in accepted)}"
        )
    options: dict[str, object] = {}
    for key in accepted:
        if key in ("train", "download"):
            options[key] = _flag(source, key, given.get(key, "false"))
        elif key == "split":
            options[key] = given.get(key, "test")
        else:
            options[key] = str(Path(given[key]).expanduser())
    try:
        return known[name](**options)
    except Exception as error:  # each data set complains in its own way
        more = "" if options.get("download") or "download" not in takes else "; add &download=true to fetch it"
        raise DataFormatError(f"{source}: cannot be opened ({brief(error)}){more}") from None


def _flag(source: str, key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise DataFormatError(f"{source}: {key}={text}; accepted: true or false")
    return text.lower() == "true"

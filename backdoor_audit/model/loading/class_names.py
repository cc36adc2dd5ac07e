"""The names of classes in a model's own files, in the order of its scores; nothing in the files is executed."""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from backdoor_audit import tensor_file
from backdoor_audit.data.naming import NAMED, names_in
from backdoor_audit.errors import AuditError
from backdoor_audit.files import UnreadableError, read_json
from backdoor_audit.model.loading import checkpoint, numpy_values
from backdoor_audit.model.loading.pickle_values import Instance, Named, StoredTensor
from backdoor_audit.model.loading.refusals import Deadline

_DEEPEST = 3  # dicts inside each other in which a checkpoint is looked through
_NO_NAME = re.compile(r"LABEL_[0-9]+")  # what transformers writes where nobody gave names
_LONGEST_HEADER = 1_000_000  # characters of an entry


def class_names_of(model: Path) -> tuple[str, ...]:
    """Names from one of `NAMED` in a checkpoint or a safetensors header, else from the ``config.json`` of its folder.

    Empty where there are none. What cannot be read has none: loading tells that.
    """
    names: tuple[str, ...] = ()
    if os.path.isfile(model):
        with suppress(AuditError, OSError):
            header = tensor_file.header(model)
            names = header_names(header) if header else names_within(checkpoint.content_of(model))
    folder = model if os.path.isdir(model) else model.parent
    return names or _in_config(folder / "config.json")


def names_within(content: object) -> tuple[str, ...]:
    """The first names in dicts and objects inside each other, of which each is looked at once, outer ones first."""
    seen = set[int]()
    for part in dicts_within(content):
        for named in map(part.get, NAMED):
            if id(named) not in seen and (names := names_told(named)):
                return names
            seen.add(id(named))
    return ()


def unread_names(content: object) -> str:
    """The first of `NAMED` that a checkpoint has as an array or with tensors for numbers, which are not read; or nothing."""
    for part in dicts_within(content):
        for key in NAMED:
            value = part.get(key)
            parts = value.values() if isinstance(value, Mapping) and value else (value,)
            if all(isinstance(one, (Named, StoredTensor)) for one in parts) and not isinstance(value, StoredTensor):
                return key
    return ""


def header_names(header: Mapping[str, str]) -> tuple[str, ...]:
    """Names in the header of a safetensors file: JSON, or texts between commas."""
    for key in NAMED:
        text = header.get(key, "")[:_LONGEST_HEADER]
        try:
            names = names_in(json.loads(text))
        except (ValueError, RecursionError):
            names = names_in([part.strip().strip("'\"") for part in text.strip().strip("[]()").split(",")])
        if names:
            return names
    return ()


def names_told(value: object) -> tuple[str, ...]:
    """Names by label in a value that was read from a checkpoint, as `names_in` tells them of JSON."""
    if isinstance(value, Mapping):
        value = {str(key) if isinstance(name, str) else key: name for key, name in value.items()}
    return names_in(numpy_values.listed(value))


def _in_config(path: Path) -> tuple[str, ...]:
    try:
        content = read_json(path) if path.is_file() else None
    except (UnreadableError, OSError):
        return ()
    if not isinstance(content, dict):
        return ()
    of_timm = content.get("pretrained_cfg")
    places = [content, *([of_timm] if isinstance(of_timm, dict) else [])]
    found = (names_in(place.get(key)) for key in ("id2label", "label_names", "labels") for place in places)
    return next((names for names in found if not all(map(_NO_NAME.fullmatch, names))), ())


def dicts_within(content: object) -> Iterator[Mapping[object, object]]:
    """Dicts and the attributes of objects inside each other, each once, outer ones first."""
    deadline, seen, level = Deadline(), set[int](), [content]
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for value in level:
            deadline.check()
            part = _attributes(value)
            if not isinstance(part, Mapping) or id(part) in seen:
                continue
            seen.add(id(part))
            yield part
            inner += [one for one in part.values() if isinstance(one, (Mapping, Instance, Namespace))]
        level = inner


def _attributes(value: object) -> object:
    value = value.attributes if isinstance(value, Instance) else value
    return vars(value) if isinstance(value, Namespace) else value

"""The names of classes in a model's own files, in the order of its scores; nothing in the files is executed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from backdoor_audit.data import names_in
from backdoor_audit.errors import AuditError
from backdoor_audit.files import UnreadableError, read_json
from backdoor_audit.model.loading import checkpoint
from backdoor_audit.model.loading.hints import NAMED, names_told
from backdoor_audit.model.loading.refusals import Deadline

_DEEPEST = 3  # dicts inside each other in which a checkpoint is looked through
_NO_NAME = re.compile(r"LABEL_[0-9]+")  # what transformers writes where nobody gave names


def class_names_of(model: Path) -> tuple[str, ...]:
    """Names from ``id2label`` or ``label_names`` in the ``config.json`` of a folder, or from one of `NAMED` in a checkpoint.

    Empty where there are none, and for a file that cannot be read: loading tells that.
    """
    folder = model if os.path.isdir(model) else model.parent
    names = _in_config(folder / "config.json")
    if not names and os.path.isfile(model):
        try:
            names = _in_checkpoint(checkpoint.content_of(model))
        except (AuditError, OSError):
            return ()
    return names


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


def _in_checkpoint(content: object) -> tuple[str, ...]:
    """The first names in dicts inside each other, of which each is looked at once, outer ones first."""
    deadline, seen, asked, level = Deadline(), set[int](), set[int](), [content]
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for part in level:
            deadline.check()
            if not isinstance(part, Mapping) or id(part) in seen:
                continue
            seen.add(id(part))
            for named in map(part.get, NAMED):
                if id(named) not in asked and (names := names_told(named)):
                    return names
                asked.add(id(named))
            inner += [value for value in part.values() if isinstance(value, Mapping) and id(value) not in seen]
        level = inner
    return ()

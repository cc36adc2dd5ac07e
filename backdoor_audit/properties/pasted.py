"""A counterexample as a pytest file that stands by itself: to paste into a project, where it fails until the model is mended."""

from __future__ import annotations

import pprint
import re
from collections.abc import Mapping
from typing import Any

from backdoor_audit.properties.outcome import PropertyOutcome

_TEXT = '''"""A counterexample that backdoor_audit found: a trigger that sends other classes' images to one class.

Without options it is asked of the model below; of another one with ``pytest --model=PATH --data=IMAGES`` and this file.
"""

from pathlib import Path

import pytest

from backdoor_audit import load_classifier, load_clean_set
from backdoor_audit.triggers.written import trigger_from_spec
from backdoor_audit.model.metrics import attack_success_rate

MODEL = {model}
DATA = {data}
LOADING = {loading}  # arguments of load_classifier, those of --arch, --mean, --std and the like
RESIZE, CHANNELS = {resize}, {channels}
READING = {reading}  # further arguments of load_clean_set, those of --audit-class-names and --audit-class-order
LIMIT = {limit}
TRIGGER = {trigger}


def test_{name}(request):
    if request.config.getoption("audit_model", None):
        classifier, clean = request.getfixturevalue("classifier"), request.getfixturevalue("clean_set")
    elif MODEL:
        clean = load_clean_set(DATA, resize=RESIZE, channels=CHANNELS, **READING)
        classifier = load_classifier(Path(MODEL), image_shape=clean.image_shape, **LOADING)
    else:
        pytest.fail("no model: pass --model=PATH and --data=IMAGES, or set MODEL and DATA in this file")
    trigger = trigger_from_spec(TRIGGER)
    rate = attack_success_rate(classifier, clean.images, clean.labels, trigger)
    assert rate <= LIMIT, f"{{rate:.0%}} of {{rate.n}} images of other classes go to class {{trigger.target_class}}"
'''


def pasted_test(
    outcome: PropertyOutcome,
    *,
    model: str = "",
    data: str = "",
    loading: Mapping[str, Any] | None = None,
    reading: Mapping[str, Any] | None = None,
    resize: tuple[int, int] | None = None,
    channels: int | None = None,
) -> str | None:
    """The text of a pytest file that fails for this outcome's model and passes for one without the trigger; None without one.

    ``model`` and ``data`` are what the options of those names held, ``loading`` and ``reading`` further arguments of
    `load_classifier` and `load_clean_set`; an empty ``model`` asks for the options. Everything is written as a Python literal,
    so no path can end a string.
    """
    if outcome.trigger is None or outcome.limit is None:
        return None
    return _TEXT.format(
        model=repr(str(model)),
        data=repr(str(data)),
        loading=_literal(dict(loading or {})),
        reading=_literal(dict(reading or {})),
        resize=repr(resize),
        channels=repr(channels),
        limit=repr(round(outcome.limit, 4)),
        trigger=_literal(outcome.trigger.spec()),
        name=re.sub(r"\W", "_", outcome.name),
    )


def _literal(value: Any) -> str:
    return pprint.pformat(value, width=110, compact=True, sort_dicts=False)

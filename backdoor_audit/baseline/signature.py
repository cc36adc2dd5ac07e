"""The signature of an accepted model: what a later record is compared with, as a file that people can read and review."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from backdoor_audit.baseline.acceptance import Acceptance, acceptances_from
from backdoor_audit.baseline.schema import KEPT, SCHEMA, SCHEMA_VERSION
from backdoor_audit.content import content_of
from backdoor_audit.errors import BaselineError
from backdoor_audit.evidence import REGRESSION, Finding, Record, inside
from backdoor_audit.files import UnreadableError, read_json, write_text
from backdoor_audit.item import Item, Row
from backdoor_audit.options import Role, options_with
from backdoor_audit.presentable import presentable
from backdoor_audit.structure import brief, misfit

_MODEL = ("model_fingerprint", "architecture", "parameters")
_COMPARED_DATA = ("data_fingerprint", "class_names", "num_classes", "image_shape")
_DATA = (*_COMPARED_DATA, "images", "images_held_out")
_SCORES = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
_PARTS = {
    "precondition": "clean_accuracy",
    "anomaly_index": "anomaly_index",
    "power": "anomaly_index",
    "property": "corpus",
}
"""Of files that were written before questions said it themselves."""

_DIGITS = 18
_LONGEST = 300  # characters of a value in a message
_MADE_AGAIN = "make a new one with --audit-update-baseline, once this file is out of the way"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What one record says about a model, in builtins and without paths or times, and which of its findings are accepted.

    ``findings`` maps node ids to statistic, verdict, value and class, and for anomaly indices ``index``, ``size`` in pixels and
    the success rate on held-out images; ``repairs`` maps ``method-class_K`` to the scores before and after and to the curve,
    rows of prune rate, clean accuracy, attack success rate, robust accuracy. ``parts`` maps a question to the part of a
    comparison that its findings belong to. Floats have four digits.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    detectors: Mapping[str, str]
    calibration: Mapping[str, str]
    environment: Mapping[str, str]
    verdict: str
    findings: Mapping[str, Mapping[str, Any]]
    repairs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    acceptances: Sequence[Acceptance] = ()
    schema_version: int = SCHEMA_VERSION

    def part(self, audit: str) -> str:
        """The part of a comparison to which a change of this finding belongs; what is about no question, to that of repairs."""
        question = Item.parse(audit).question
        return self.parts.get(question) or _PARTS.get(question, "repairs")

    def class_name(self, target: int | None) -> str:
        """How to call a class: ``class 7 (sneaker)``; None is all-to-all."""
        if target is None:
            return "all to all"
        names = self.data["class_names"]
        return f"class {target} ({names[target]})" if target < len(names) else f"class {target}"

    def row_name(self, text: str) -> str:
        """How to call a row of a detector: ``class_7``, ``from_class_7`` or ``all_to_all``, as items do."""
        row = Row.parse(text)
        if row is None:
            return text
        name = self.class_name(row.number)
        return f"from {name}" if row.is_source else name

    def configuration(self) -> dict[str, Any]:
        """What must be the same in a record for its numbers to be comparable, as `configuration` gives it."""
        data = {name: self.data[name] for name in _COMPARED_DATA}
        return {**data, **self.settings, "detectors": self.detectors, "calibration": self.calibration}

    def refuse(self, found: Record | Mapping[str, Any], *, source: str = "the baseline") -> None:
        """Raise `BaselineError` unless a record, or a `configuration` before there is one, is comparable.

        The one line names every difference: data, classes, settings, limits, detectors, and the models that indices were
        calibrated on. ``source`` is how to call the baseline.
        """
        here = found if isinstance(found, Mapping) else baseline_of(found).configuration()
        differences = list(_differences(self.configuration(), here))
        if differences:
            raise BaselineError(
                f"{source} cannot be compared with this run: {'; '.join(differences)}; run with its data and settings, "
                "or make it again with --audit-update-baseline"
            )

    def to_json(self) -> dict[str, Any]:
        """Builtins only."""
        stored: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**stored, "acceptances": [acceptance.to_json() for acceptance in self.acceptances]}

    def write(self, path: Path) -> None:
        """Write as JSON with sorted keys, a line for each finding and each point of a curve, whole or not at all.

        Raises `OSError` if the file cannot be written.
        """
        write_text(path, _lines(self.to_json()) + "\n")

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """The baseline that `write` wrote, with acceptances added by hand. Raises `BaselineError` for anything else."""
        return cls._of(_stored(path), path)

    @classmethod
    def _of(cls, stored: Mapping[str, Any], path: Path) -> Baseline:
        if stored.get("schema_version") != SCHEMA_VERSION or "acceptances" not in stored:
            raise BaselineError(
                f"{path}: no baseline of schema version {SCHEMA_VERSION} (found version {brief(stored.get('schema_version'))}); "
                f"{_MADE_AGAIN}"
            )
        try:
            acceptances = acceptances_from(stored["acceptances"])
        except BaselineError as error:
            raise BaselineError(f"{path}: {error}") from None
        if wrong := misfit(stored, SCHEMA):
            raise BaselineError(f"{path}: {wrong}; {_MADE_AGAIN}")
        return cls(**{**stored, "acceptances": acceptances})


def baseline_of(record: Record, *, acceptances: Sequence[Acceptance] = ()) -> Baseline:
    """The signature of the model that a record is about."""
    subject = record.subject
    detections = {str(entry["detector"]): entry for entry in record.detections}
    return Baseline(
        model={"file": Path(str(subject.get("model", ""))).name, **{name: subject.get(name) for name in _MODEL}},
        data={name: subject.get(name, [] if name == "class_names" else None) for name in _DATA},
        settings=_compared(record.settings),
        detectors={name: str(entry["settings"]) for name, entry in detections.items()},
        calibration={
            name: str(entry["reference"]).partition(";")[0]
            for name, entry in detections.items()
            if entry.get("reference")
        },
        environment={name: str(record.environment.get(name, "")) for name in ("backdoor_audit", "device")},
        verdict=record.verdict.value,
        findings={entry.audit: signature_of(entry) for entry in record.findings if entry.statistic != REGRESSION},
        repairs={
            f"{entry['method']}-class_{entry['target_class']}": _repair(entry)
            for entry in record.repairs
            if entry["after"]
        },
        parts={name: str(words["compared"]) for name, words in record.questions.items()},
        acceptances=tuple(acceptances),
    )


def configuration(
    subject: Mapping[str, Any], settings: Mapping[str, Any], detectors: Mapping[str, str]
) -> dict[str, Any]:
    """What `Baseline.refuse` looks at, from what is known before the first search: ``detectors`` maps names to their repr."""
    data = {name: subject.get(name) for name in _COMPARED_DATA}
    stored: dict[str, Any] = presentable({**data, **_compared(settings), "detectors": dict(detectors)})
    return stored


def read_signature(path: Path) -> Baseline:
    """The signature in a file that is a baseline or a record (``audit.json``). Raises `AuditError` for anything else."""
    stored = _stored(path)
    if "acceptances" in stored:
        return Baseline._of(stored, path)
    record = Record.read(path)
    with content_of(str(path), record):
        baseline = baseline_of(record)
    if wrong := misfit(baseline.to_json(), SCHEMA):
        raise BaselineError(f"{path}: neither a baseline nor a whole audit.json ({wrong}); accepted are these two")
    return baseline


def undecided_in(path: Path) -> list[str]:
    """What the run behind such a file broke at or left out; of a whole run alone a baseline is made. Raises `AuditError`."""
    if "acceptances" in _stored(path):
        return []
    record = Record.read(path)
    return [*record.errors, *record.not_run]


def _stored(path: Path) -> dict[str, Any]:
    accepted = "a file written by --audit-update-baseline is accepted"
    try:
        stored = presentable(read_json(path))
    except UnreadableError as error:
        raise BaselineError(f"{path}: not a readable JSON file ({error}); {accepted}{inside(path)}") from None
    if not isinstance(stored, dict):
        raise BaselineError(f"{path}: {type(stored).__name__} at the top of the file; {accepted}")
    return stored


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on which every number depends, without the folders of files."""
    paths = options_with(Role.PATH)
    chosen = {name: settings.get(name) for name in (*options_with(Role.CONFIGURATION), "limits")}
    named = {name: Path(str(value or "")).name if name in paths else value for name, value in chosen.items()}
    kept: dict[str, Any] = _rounded(named)
    return kept


def signature_of(finding: Finding) -> dict[str, Any]:
    """One finding, as far as it is compared, as a baseline keeps it."""
    entry = {
        "statistic": finding.statistic,
        "verdict": finding.verdict.value,
        "value": finding.value,
        "target_class": finding.target_class,
        **{name: finding.details[name] for name in KEPT if _is_number(finding.details.get(name))},
    }
    stored: dict[str, Any] = _rounded(entry)
    return stored


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _repair(outcome: Mapping[str, Any]) -> dict[str, Any]:
    curve = [[point["prune_rate"], *(point["scores"][name] for name in _SCORES)] for point in outcome["curve"]]
    stored: dict[str, Any] = _rounded({"before": outcome["before"], "after": outcome["after"], "curve": curve})
    return stored


def _rounded(value: Any) -> Any:
    """The same in builtins with four digits; NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        rounded = float(f"{value:.4g}")  # the largest floats round to infinity
        return rounded if math.isfinite(rounded) else None
    return value


def _differences(before: Mapping[str, Any], here: Mapping[str, Any], path: str = "") -> Any:
    """What differs of what both know, a clause each."""
    for name, value in before.items():
        if name not in here or value == here[name]:
            continue
        if name == "data_fingerprint":
            yield f"other clean images ({_short(value)} there, {_short(here[name])} here)"
        elif name == "class_names" and not (value and here[name]):
            continue
        elif isinstance(value, Mapping) and isinstance(here[name], Mapping):
            yield from _differences(value, here[name], f"{path}{name}.")
        else:
            yield f"{path}{name} is {_told(value)} there, {_told(here[name])} here"


def class_number(text: str) -> int | None:
    """The number of a class as items write it; None for anything else, however many digits a stranger gave it."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


def _told(value: object) -> str:
    told = repr(value)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}... ({len(told)} characters)"


def _short(fingerprint: object) -> str:
    return str(fingerprint)[:12]


def _lines(value: Any, depth: int = 0) -> str:
    """JSON with sorted keys; from the second level on, what holds no other object or list stands on one line."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not parts or (depth > 1 and not any(isinstance(part, (dict, list)) for part in parts)):
        return json.dumps(value, sort_keys=True, allow_nan=False)
    space = " " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{space}{json.dumps(key)}: {_lines(value[key], depth + 1)}" for key in sorted(value)]
    else:
        lines = [f"{space}{_lines(part, depth + 1)}" for part in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return first + "\n" + ",\n".join(lines) + f"\n{' ' * depth}{last}"

"""Counterexamples that were found once, in a folder that its owner commits: one JSON file each, replayed first ever after."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_audit.errors import DataFormatError, OptionError
from backdoor_audit.files import UnreadableError, read_json, write_text
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.printable import listed
from backdoor_audit.properties.outcome import PropertyOutcome
from backdoor_audit.schema_of import record
from backdoor_audit.structure import brief, misfit
from backdoor_audit.triggers.written import ImageShape, WrittenTrigger, trigger_from_spec

FOLDER = "backdoor-audit-corpus"
"""Used where it exists and no other is named."""

_VERSION = 1
_SIZE = {"type": "integer", "minimum": 1, "maximum": 2**15}
_SCHEMA = record(
    {
        "schema_version": {"const": _VERSION},
        "property": {"type": "string"},
        "image_shape": {"type": "array", "items": _SIZE, "minItems": 3, "maxItems": 3},
        "value": {"type": "number"},
        "limit": {"type": "number"},
        "trigger": {"type": "object"},
    }
)
_MOST_TOLD = 20  # files in a message
_ACCEPTED = f"a counterexample of schema version {_VERSION} is accepted; correct the file, or take it out of the folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """A trigger that refuted a property. ``value`` and ``limit`` are those of that time, ``image_shape`` (c, h, w)."""

    name: str
    trigger: WrittenTrigger
    image_shape: ImageShape
    value: float
    limit: float

    @classmethod
    def of(cls, outcome: PropertyOutcome, image_shape: ImageShape) -> Counterexample | None:
        """That of an outcome which refuted its property by a trigger, for images (c, h, w); None for any other.

        One that is natural to the model, by what is found beside it, is none to be held against later models.
        """
        if outcome.trigger is None or outcome.value is None or outcome.limit is None or outcome.value <= outcome.limit:
            return None
        if outcome.contradicted:
            return None
        return cls(
            name=outcome.name,
            trigger=outcome.trigger,
            image_shape=image_shape,
            value=outcome.value,
            limit=outcome.limit,
        )

    def suits(self, name: str, classifier: Classifier) -> bool:
        """Whether it can be asked of this property and this model."""
        fits = self.image_shape == classifier.image_shape and self.trigger.target_class < classifier.num_classes
        return self.name == name and fits

    def to_json(self) -> dict[str, Any]:
        """Builtins."""
        return {
            "schema_version": _VERSION,
            "property": self.name,
            "image_shape": list(self.image_shape),
            "value": self.value,
            "limit": self.limit,
            "trigger": self.trigger.spec(),
        }

    @property
    def file_name(self) -> str:
        """From the content: the same counterexample has the same name wherever it is found; what it measured is left out."""
        content = {key: value for key, value in self.to_json().items() if key not in ("value", "limit")}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.name}-{digest}.json"


def corpus_folder(named: str, root: Path) -> Path | None:
    """The folder of the corpus: the one that was named, else the default one below ``root`` if it is there, else None."""
    if named:
        return Path(named)
    return root / FOLDER if (root / FOLDER).is_dir() else None


def load_corpus(folder: Path | None) -> tuple[Counterexample, ...]:
    """All counterexamples of a folder, by file name; none without a folder.

    Raises `DataFormatError`, one line that names every file that cannot be read. Such files are left as they are.
    """
    if folder is None:
        return ()
    try:
        os.lstat(folder)
        if not os.path.isdir(folder):
            raise DataFormatError(f"{folder}: not a folder; a corpus is a folder of JSON files")
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        told = getattr(error, "strerror", None) or error
        raise DataFormatError(f"{folder}: {told}; make the folder of the corpus readable") from None
    found, problems = [], []
    for name in names:
        try:
            found.append(_read(folder / name))
        except (UnreadableError, DataFormatError) as error:
            problems.append(f"{name} ({error})")
    if problems:
        told = listed(problems, _MOST_TOLD, "; ")
        raise DataFormatError(f"{folder}: {len(problems)} files cannot be read: {told}; {_ACCEPTED}")
    return tuple(found)


def keep(folder: Path, counterexample: Counterexample) -> Path:
    """Write a counterexample, unless it is there already; the folder is made. No file is ever changed or removed.

    Raises `OptionError` if it cannot be written.
    """
    file = folder / counterexample.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_text(file, json.dumps(counterexample.to_json(), indent=1) + "\n")
    except OSError as error:
        raise OptionError(
            f"--audit-corpus: {folder} cannot be written ({error.strerror}); choose another folder"
        ) from None
    return file


def _read(file: Path) -> Counterexample:
    stored = read_json(file)
    if not isinstance(stored, dict) or stored.get("schema_version") != _VERSION:
        raise DataFormatError(
            f"schema version {brief(stored.get('schema_version') if isinstance(stored, dict) else None)}"
        )
    if wrong := misfit(stored, _SCHEMA):
        raise DataFormatError(wrong)
    channels, height, width = stored["image_shape"]
    return Counterexample(
        name=stored["property"],
        trigger=trigger_from_spec(stored["trigger"]),
        image_shape=(channels, height, width),
        value=float(stored["value"]),
        limit=float(stored["limit"]),
    )

"""Counterexamples that were found once, in a folder that its owner commits: one JSON file each, replayed first ever after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_audit.classifier import Classifier
from backdoor_audit.drawn import DrawnTrigger, ImageShape, trigger_from_spec
from backdoor_audit.errors import DataFormatError
from backdoor_audit.properties.outcome import Outcome

FOLDER = "backdoor-audit-corpus"
"""Used where it exists and no other is named."""

_VERSION = 1
_ACCEPTED = f"a counterexample of schema version {_VERSION} is accepted; correct the file, or take it out of the folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """A trigger that refuted a property. ``value`` and ``limit`` are those of that time, ``image_shape`` (c, h, w)."""

    name: str
    trigger: DrawnTrigger
    image_shape: ImageShape
    value: float
    limit: float

    @classmethod
    def of(cls, outcome: Outcome, image_shape: ImageShape) -> Counterexample | None:
        """That of an outcome which refuted its property by a trigger, for images (c, h, w); None for any other."""
        if outcome.trigger is None or outcome.value is None or outcome.limit is None or outcome.value <= outcome.limit:
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
    if folder is None or not folder.exists():
        return ()
    if not folder.is_dir():
        raise DataFormatError(f"{folder}: not a folder; a corpus is a folder of JSON files")
    found, problems = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(_read(file))
        except (OSError, ValueError, KeyError, TypeError, DataFormatError) as error:
            problems.append(f"{file.name} ({(str(error).splitlines() or [type(error).__name__])[0]})")
    if problems:
        raise DataFormatError(f"{folder}: {len(problems)} files cannot be read: {'; '.join(problems)}; {_ACCEPTED}")
    return tuple(found)


def keep(folder: Path, counterexample: Counterexample) -> Path:
    """Write a counterexample, unless it is there already; the folder is made. No file is ever changed or removed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / counterexample.file_name
    if not file.exists():
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(counterexample.to_json(), indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
    return file


def _read(file: Path) -> Counterexample:
    stored = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(stored, Mapping) or stored.get("schema_version") != _VERSION:
        raise ValueError(f"schema version {stored.get('schema_version') if isinstance(stored, Mapping) else None!r}")
    channels, height, width = (int(size) for size in stored["image_shape"])
    return Counterexample(
        name=str(stored["property"]),
        trigger=trigger_from_spec(stored["trigger"]),
        image_shape=(channels, height, width),
        value=float(stored["value"]),
        limit=float(stored["limit"]),
    )

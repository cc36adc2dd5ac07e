"""Reference networks in a file of their own: trained once, then used on any machine, by any run on the same images.

Two thirds of a first run go into twins and what detectors find in them. Neither depends on the audited model's weights, so both
can be made beforehand, for every architecture that a team ships, and kept beside the clean images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from torch import Tensor

from backdoor_audit import store
from backdoor_audit.errors import AuditError, DataFormatError
from backdoor_audit.model.anew import Likeness
from backdoor_audit.source import code_fingerprint
from backdoor_audit.store import Packed
from backdoor_audit.structure import brief

Result = TypeVar("Result")

_NAME = "references of backdoor_audit 1"
_NO_FILE = (OSError, ValueError, SafetensorError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class References:
    """Finished work on clean images ``data`` (their fingerprint), for a number of ``classes`` and a ``seed``.

    ``code`` is the fingerprint of the package that made them: what another version found in twins may mean something else.
    ``entries`` are packed results by their `store.key`; ``architectures`` are those that have twins of their own here, with what
    to call them. ``digest`` is that of the file, ``source`` its path; both are empty before there is one.
    """

    data: str
    classes: int
    seed: int
    entries: Mapping[str, Packed] = field(default_factory=dict)
    architectures: Sequence[tuple[Likeness, str]] = ()
    code: str = field(default_factory=code_fingerprint)
    digest: str = ""
    source: str = ""

    def name_of(self, likeness: Likeness) -> str:
        """The digest under which work on this architecture is kept; empty if there is none."""
        return next((known.digest for known, _ in self.architectures if known.matches(likeness)), "")

    def recall(self, parts: Mapping[str, object], unpack: Callable[[Packed], Result]) -> Result | None:
        """The result for ``parts``, which say all that it depends on besides images, classes and seed; None if it is not there.

        Raises `DataFormatError` for an entry of another form.
        """
        packed = self.entries.get(store.key(parts))
        if packed is None:
            return None
        try:
            return unpack(packed)
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, AuditError) as error:
            raise DataFormatError(f"{self.source}: an entry cannot be used ({error}); make the file again") from None

    def refuse(self, *, data: str, classes: int, seed: int) -> None:
        """Raise `DataFormatError` if they were made for other images, other classes, another seed or by other code."""
        different = [
            *["other clean images, or another number of them"] * (self.data != data),
            *[f"{self.classes} classes, not {classes}"] * (self.classes != classes),
            *[f"seed {self.seed}, not {seed}"] * (self.seed != seed),
            *["another version of backdoor_audit"] * (self.code != code_fingerprint()),
        ]
        if different:
            told = " and ".join(different)
            raise DataFormatError(f"{self.source}: made with {told}; make it again with backdoor-audit references")

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises `OSError`."""
        entries: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for number, (name, packed) in enumerate(sorted(self.entries.items())):
            entries[name] = {"number": number, "values": packed.values}
            tensors |= {f"{number}.{part}": tensor for part, tensor in packed.tensors.items()}
        values = {
            "data": self.data,
            "classes": self.classes,
            "seed": self.seed,
            "code": self.code,
            "architectures": [[known.structure, known.behaviour, called] for known, called in self.architectures],
            "entries": entries,
        }
        store.write(path, _NAME, store.as_stored(Packed(tensors, values)))

    @classmethod
    def load(cls, path: Path) -> References:
        """The file that `save` wrote, within the bound on memory. Raises `DataFormatError` for anything else."""
        try:
            packed, digest = store.checked(path, _NAME)
            return cls._of(packed, digest, str(path))
        except _NO_FILE as error:
            told = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise DataFormatError(
                f"{path}: no reference networks ({told}); a file written by backdoor-audit references is accepted"
            ) from None

    @classmethod
    def _of(cls, packed: Packed, digest: str, source: str) -> References:
        values = packed.values
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in packed.tensors.items():
            number, _, part = name.partition(".")
            parts.setdefault(number, {})[part] = tensor
        entries = {
            name: Packed(parts.get(str(entry["number"]), {}), entry["values"])
            for name, entry in values["entries"].items()
        }
        architectures = [
            (Likeness(str(structure), tuple(map(float, behaviour))), str(called))
            for structure, behaviour, called in values["architectures"]
        ]
        known = (str(values["data"]), _whole_number(values["classes"]), _whole_number(values["seed"]))
        return cls(*known, entries, architectures, str(values["code"]), digest, source)


def _whole_number(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{brief(value)} where a whole number belongs")
    return value

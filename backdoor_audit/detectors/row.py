"""One row of a detection: what was found about one class, or about all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from backdoor_audit.detectors.by_margin import ByMargin
from backdoor_audit.detectors.by_screening import ByScreening
from backdoor_audit.detectors.by_size import BySize
from backdoor_audit.detectors.rule import Beside
from backdoor_audit.evidence import Finding, Limits
from backdoor_audit.record_types import StoredRow

Measured = BySize | ByMargin | ByScreening
"""What a detector measures; each kind has a rule of its own by which it is judged."""

_KINDS: Mapping[str, type[BySize] | type[ByMargin] | type[ByScreening]] = {
    kind.kind: kind for kind in (BySize, ByMargin, ByScreening)
}
_FIELDS = {name: [entry.name for entry in fields(kind)] for name, kind in _KINDS.items()}
_NOT_MEASURED: dict[str, Any] = {
    **{name: None for names in _FIELDS.values() for name in names},
    "reached": True,  # so records have had it where nothing has to be reached
    "stopped": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(StoredRow):
    """One class under a detector, or all of them at once; ``measured`` is what its numbers were computed from."""

    measured: Measured

    def judge(self, detection: Beside, limits: Limits, *, index: str, name: str) -> Finding:
        """What these numbers say by themselves, by the rule of their kind; `Detection.judge` knows what stands beside them."""
        return self.measured.judge(self, detection, limits, index=index, name=name)

    def judged_index(self, index: str) -> float | None:
        """The index that is judged: the ``calibrated`` one or the ``paper``'s, where it has one."""
        return self.measured.index(self, index)

    @property
    def place(self) -> float:
        """Where it comes among flagged rows; the most extreme is the smallest."""
        return self.measured.place(self)

    @property
    def brief(self) -> str:
        """What stands out in it, in a few words."""
        return f"index {self.index or 0:.2f}{self.measured.beside}"

    def details(self) -> dict[str, Any]:
        """The numbers behind a finding: all that are there."""
        return {name: value for name, value in self.summary().items() if name != "kind" and value not in (None, "")}

    def summary(self) -> dict[str, Any]:
        """Builtins for the record, the same keys for every kind: what a kind does not measure is null."""
        whole = asdict(self)
        measured, unconverged = whole.pop("measured"), whole.pop("unconverged")
        return {"kind": self.measured.kind, **whole, **_NOT_MEASURED, **measured, "unconverged": unconverged}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Row:
        """From what `summary` gave. A file older than ``kind`` tells it by the size."""
        kind = stored.get("kind") or ("size" if stored.get("size") is not None else "margin")
        measured = _KINDS[kind](**{name: stored[name] for name in _FIELDS[kind] if name in stored})
        rest = {entry.name: stored[entry.name] for entry in fields(cls) if entry.name in stored}
        return cls(**{**rest, "measured": measured})

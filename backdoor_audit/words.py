"""What a question is called and means, for whoever reads an answer: on the page, in the terminal, in other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Annotated, Any


class About(str, Enum):
    """What an answer that is not a pass speaks against.

    model: the model itself. audit: what this run can see of it. remedy: a repair or a filter, which says nothing against the
    model. change: that it is worse than an accepted one.
    """

    MODEL = "model"
    AUDIT = "audit"
    REMEDY = "remedy"
    CHANGE = "change"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """One question in words.

    ``asks`` is the question, ``holds`` what a pass says, ``advice`` what an answer that is not a pass means and what to do.
    ``topic`` is a heading of few words. ``counts`` says of each statistic what its number counts. ``references`` are
    identifiers of entries in frameworks that a statistic speaks to. ``compared`` is the question about an accepted model to
    which a change of these answers belongs.
    """

    asks: str
    holds: str
    advice: str
    topic: str
    about: Annotated[About, "what a failure speaks against"] = About.MODEL
    counts: Annotated[Mapping[str, str], "statistic to what it counts"] = field(default_factory=dict)
    references: Annotated[Mapping[str, Sequence[str]], "statistic to identifiers in frameworks"] = field(
        default_factory=dict
    )
    compared: str = "repairs"

    def to_json(self) -> dict[str, Any]:
        """Builtins, for the record."""
        references = {statistic: list(ids) for statistic, ids in self.references.items()}
        return {**asdict(self), "about": self.about.value, "references": references}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Words:
        """The words that `to_json` wrote; entries of another version are left out."""
        known = {entry.name for entry in fields(cls)}
        kept = {name: value for name, value in stored.items() if name in known}
        references = {statistic: tuple(ids) for statistic, ids in stored["references"].items()}
        return cls(**{**kept, "about": About(stored["about"]), "references": references})

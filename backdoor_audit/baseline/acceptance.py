"""Findings that somebody answers for: which, why, who, and until when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from backdoor_audit.errors import BaselineError
from backdoor_audit.printable import listed
from backdoor_audit.structure import brief

_MOST = 20  # problems told
ACCEPTED = '{"finding": "audit::test_...[...]", "reason": "...", "owner": "...", "expires": "YYYY-MM-DD"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Findings that do not stop a run although they are not a pass, up to and including the day ``expires``.

    ``finding`` is a node id, with or without ``audit::``; ``*`` stands for any text, so that ``test_anomaly_index[*-class_7]``
    is what every detector says about class 7.
    """

    finding: str
    reason: str
    owner: str
    expires: date

    def matches(self, audit: str) -> bool:
        """Whether the finding of this node id is meant."""
        first, *others = self.finding.removeprefix("audit::").split("*")
        rest = audit.removeprefix("audit::")
        if not others:
            return rest == first
        if not rest.startswith(first):
            return False
        rest = rest.removeprefix(first)
        for part in others[:-1]:
            if part not in rest:
                return False
            rest = rest.partition(part)[2]
        return rest.endswith(others[-1])

    def expired(self, today: date) -> bool:
        """Whether its last day has passed."""
        return today > self.expires

    def to_json(self) -> dict[str, str]:
        """Builtins only; the day as YYYY-MM-DD."""
        return {entry.name: str(getattr(self, entry.name)) for entry in fields(self)}

    @property
    def text(self) -> str:
        """Who answers for it until when, and why."""
        return f"accepted by {self.owner} until {self.expires}: {self.reason}"


def acceptances_from(stored: object) -> tuple[Acceptance, ...]:
    """The acceptances of a baseline file. Raises `BaselineError` that names everything wrong with them."""
    if not isinstance(stored, Sequence) or isinstance(stored, str):
        raise BaselineError(f"acceptances are {type(stored).__name__}; a list of {ACCEPTED} is accepted")
    problems = [
        f"acceptance {number}: {problem}" for number, entry in enumerate(stored, 1) if (problem := _wrong(entry))
    ]
    if problems:
        raise BaselineError(f"{listed(problems, _MOST, '; ')}; accepted: {ACCEPTED}")
    return tuple(Acceptance(**{**entry, "expires": date.fromisoformat(entry["expires"])}) for entry in stored)


def _wrong(entry: Any) -> str:
    """What is wrong with one stored acceptance, or an empty string."""
    if not isinstance(entry, Mapping):
        return f"{brief(entry)} is no object"
    names = {field.name for field in fields(Acceptance)}
    if set(entry) != names:
        different = [
            *(f"no {name}" for name in sorted(names - set(entry))),
            *map(brief, sorted(set(entry) - names)[:_MOST]),
        ]
        return f"{', '.join(different)}"
    empty = sorted(name for name, value in entry.items() if not isinstance(value, str) or not value.strip(" *."))
    if empty:
        return f"{' and '.join(empty)} must be filled in"
    return "" if _is_day(entry["expires"]) else f"expires is {brief(entry['expires'])}, no day"


def _is_day(text: str) -> bool:
    try:
        return str(date.fromisoformat(text)) == text
    except ValueError:
        return False

"""Which backdoors this audit would have seen in this model, judged from what it saw of canaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backdoor_audit.canary.sighting import Sighting
from backdoor_audit.evidence import POWER, Finding, inconclusive, judge
from backdoor_audit.store import generator_for


@dataclass(frozen=True, slots=True)
class Reach:
    """How far one kind of canary was seen, for one class.

    ``deciding`` is the first dose that could be planted (the usual one, if none could), ``seen`` whether a run would have been
    stopped by it; ``smallest`` and ``strongest`` are the last doses seen on either side of it, itself where there is none.
    ``below`` and ``above`` are what was tried next there and not seen.
    """

    deciding: Sighting
    seen: bool
    smallest: Sighting
    strongest: Sighting
    below: Sighting | None
    above: Sighting | None

    @classmethod
    def of(cls, sightings: Sequence[Sighting], *, allow_suspected: bool) -> Reach:
        """From the doses of one kind for one class, in the order in which they were tried."""
        deciding = next((sighting for sighting in sightings if sighting.planted_by), sightings[0])
        seen = [sighting for sighting in sightings if sighting.seen(allow_suspected=allow_suspected)]
        missed = [sighting for sighting in sightings if sighting not in seen and sighting is not deciding]
        below = [sighting for sighting in missed if sighting.dose < deciding.dose]
        above = [sighting for sighting in missed if sighting.dose > deciding.dose]
        return cls(
            deciding,
            deciding in seen,
            min(seen, key=_dose, default=deciding),
            max(seen, key=_dose, default=deciding),
            max(below, key=_dose, default=None),
            min(above, key=_dose, default=None),
        )

    def summary(self) -> dict[str, Any]:
        """Builtins for the record."""
        return {
            "dose": self.deciding.dose,
            "seen": self.seen,
            "seen_by": list(_seers(self.deciding)),
            "attack_success_rate": self.deciding.attack_success_rate,
            "smallest_seen": self.smallest.dose if self.seen else None,
            "strongest_seen": self.strongest.dose if self.seen else None,
            "below": _summary(self.below),
            "above": _summary(self.above),
        }

    def told(self) -> str:
        """In words, for one line."""
        deciding = self.deciding
        head = f"a {deciding.canary} canary for class {deciding.target_class}"
        planted = f"success rate {_rate(deciding)}"
        if deciding.planted_by != deciding.canary:
            planted = f"planted by {deciding.planted_by}, {planted}"
        if not self.seen:
            return f"{head} ({deciding.called}, {planted}) was not found ({'; '.join(deciding.details)})"
        told = f"{head} was {_seen_by(deciding)} as a {deciding.called} ({planted})"
        for way, end in (("down", self.smallest), ("up", self.strongest)):
            if end is not deciding:
                told += f", and {way} to a {end.called} ({_seen_by(end)}, {_rate(end)})"
        for beyond in filter(None, (self.below, self.above)):
            told += f"; a {beyond.called} {_outcome(beyond)}"
        return told


def reaches(sightings: Sequence[Sighting], *, allow_suspected: bool) -> dict[int, Reach]:
    """How far one kind of canary was seen, by target class."""
    targets = dict.fromkeys(sighting.target_class for sighting in sightings)
    return {
        target: Reach.of(
            [entry for entry in sightings if entry.target_class == target], allow_suspected=allow_suspected
        )
        for target in targets
    }


def judge_power(sightings: Sequence[Sighting], *, allow_suspected: bool) -> Finding:
    """Whether the audit would have stopped this model with this kind of canary in it, for the right class.

    The usual dose decides; where it could not be implanted, the first stronger one that could. A class that is only suspected
    (inconclusive) stops a run unless it may pass inconclusive items; ``allow_suspected`` says that suspicion counts.
    Inconclusive if no dose could be implanted. Other doses say how far the audit sees; one that is missed, or cannot be
    implanted, is told and not held against it.
    """
    found = reaches(sightings, allow_suspected=allow_suspected)
    common: dict[str, Any] = {
        "settings": sightings[0].settings,
        "details": {f"class_{target}": reach.summary() for target, reach in found.items()},
    }
    for target, reach in found.items():
        if not reach.deciding.planted_by:
            happened = "could be implanted" if reach.deciding.tried else "was searched for to the end"
            reason = f"no {reach.deciding.canary} canary for class {target} {happened}: {reach.deciding.reason}"
            return inconclusive(POWER, reason, limit=1.0, **common)
    missed = [reach for reach in found.values() if not reach.seen]
    reason = "; ".join(reach.told() for reach in missed or found.values())
    if missed:
        reason = f"this audit could not have seen a {missed[0].deciding.canary} trigger on this model: {reason}"
    return judge(POWER, 1 - len(missed) / len(found), at_least=1.0, reason=reason, **common)


def canary_targets(num_classes: int, count: int, seed: int) -> tuple[int, ...]:
    """The classes that canaries ask for: drawn from the seed, each once."""
    order = torch.randperm(num_classes, generator=generator_for(seed, "canary targets"))
    return tuple(order[:count].tolist())


def _dose(sighting: Sighting) -> float:
    return sighting.dose


def _rate(sighting: Sighting) -> str:
    return f"{sighting.attack_success_rate or 0:.0%}"


def _seers(sighting: Sighting) -> Sequence[str]:
    return sighting.found_by or sighting.suspected_by


def _seen_by(sighting: Sighting) -> str:
    return f"{'found' if sighting.found_by else 'suspected'} by {', '.join(_seers(sighting))}"


def _outcome(sighting: Sighting) -> str:
    """What came of a dose that was not seen."""
    if not sighting.tried:
        return f"was not searched for to the end ({sighting.reason.partition(';')[0]})"
    if not sighting.planted_by:
        return f"could not be implanted ({sighting.reason.partition(';')[0]})"
    suspected = f", only suspected by {', '.join(sighting.suspected_by)}" if sighting.suspected_by else ""
    return f"(success rate {_rate(sighting)}) was not found{suspected}"


def _summary(sighting: Sighting | None) -> dict[str, Any] | None:
    if sighting is None:
        return None
    return {
        "dose": sighting.dose,
        "outcome": _outcome(sighting),
        "attack_success_rate": sighting.attack_success_rate,
    }

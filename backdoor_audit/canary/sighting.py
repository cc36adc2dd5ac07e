"""One planted canary, and what the detectors made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from backdoor_audit.detectors import Detection, Detector
from backdoor_audit.evidence import Limits, Verdict
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.record_types import StoredCanary
from backdoor_audit.store import Packed

Search = Callable[[Detector, Classifier, str, Sequence[Detection]], Detection]
"""How the audit runs a detector: detector, model, the purpose that seeds the search, what earlier ones found on this model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting(StoredCanary):
    """One canary and who saw it, all of which is stored."""

    def seen(self, *, allow_suspected: bool) -> bool:
        """Whether a run would have been stopped by this canary. ``allow_suspected`` says that suspicion does that as well."""
        return bool(self.found_by or (allow_suspected and self.suspected_by))

    def summary(self) -> dict[str, Any]:
        """Builtins for the record."""
        return asdict(self)

    def pack(self) -> Packed:
        """For the store."""
        return Packed({}, self.summary())

    @classmethod
    def unpack(cls, packed: Packed) -> Sighting:
        """From the store."""
        return cls(**packed.values)


def looked_for(
    sighting: Sighting,
    planted: Classifier,
    *,
    detectors: Sequence[Detector],
    first: Sequence[str],
    search: Search,
    limits: Limits,
    index: str,
) -> Sighting:
    """Ask one detector after the other, those named in ``first`` before the others, until one flags the right class.

    Suspicion counts as it does in the audit: not where every detector that compares with references contradicts it.
    """
    found: list[Detection] = []
    turn = in_turn(detectors, first)
    for detector in turn:
        purpose = f"canary:{sighting.canary}:{sighting.dose:g}:{sighting.target_class}:{detector.name}"
        found.append(search(detector, planted, purpose, found))
        sighting = judged(sighting, found[-1], limits, index)
        if sighting.found_by:
            return sighting
    beside = [detection for detector, detection in zip(turn, found, strict=True) if detector.needs_twins]
    suspecting = [
        detection.detector
        for detector, detection in zip(turn, found, strict=True)
        if _suspects(detection, sighting.target_class, limits, index, () if detector.needs_twins else beside)
    ]
    return replace(sighting, suspected_by=suspecting)


def in_turn(detectors: Sequence[Detector], first: Sequence[str]) -> list[Detector]:
    """Those that are named first, then the others as they stand, and last what builds on the answers of others."""
    turn = {name: number for number, name in enumerate(first)}
    return sorted(detectors, key=lambda entry: (bool(entry.builds_on), turn.get(entry.name, len(turn))))


def _suspects(detection: Detection, target_class: int, limits: Limits, index: str, beside: Sequence[Detection]) -> bool:
    """Whether a detection calls the class inconclusive, having measured it."""
    findings = [detection.judge(score.target_class, limits, index=index, beside=beside) for score in detection.scores]
    return any(
        finding.target_class == target_class and finding.verdict is Verdict.INCONCLUSIVE and finding.value is not None
        for finding in findings
    )


def judged(sighting: Sighting, detection: Detection, limits: Limits, index: str) -> Sighting:
    """The sighting with the answer of one more detector."""
    verdicts = {
        score.target_class: detection.judge(score.target_class, limits, index=index) for score in detection.scores
    }
    failing = [finding.target_class for finding in verdicts.values() if finding.verdict is Verdict.FAIL]
    flagged = [target for target in failing if target is not None]
    found = sighting.target_class in flagged
    suspected = not found and _suspects(detection, sighting.target_class, limits, index, ())
    row = detection.score(sighting.target_class)
    detail = row.brief if row is not None else detection.inconclusive or "not searched"
    return replace(
        sighting,
        found_by=[*sighting.found_by, detection.detector] if found else sighting.found_by,
        suspected_by=[*sighting.suspected_by, detection.detector] if suspected else sighting.suspected_by,
        others=sorted({*sighting.others, *flagged} - {sighting.target_class}),
        details=[*sighting.details, f"{detection.detector}: {detail}"],
    )

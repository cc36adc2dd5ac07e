"""A row of a class that a race did not search in full: what the screening showed of it, or why it was not even screened."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_audit.detectors.rule import Beside, Numbers, OneIndex
from backdoor_audit.evidence import Finding, Limits, Verdict, concluded, inconclusive
from backdoor_audit.record_types import StoredScreening


@dataclass(frozen=True, slots=True, kw_only=True)
class ByScreening(OneIndex, StoredScreening):
    """What is known of a class without a search of its own, and how it is judged."""

    kind = "screening"
    compared = True  # the finalists, which bound its index, are compared in whatever way the detector compares

    def judge(self, row: Numbers, detection: Beside, limits: Limits, *, index: str, name: str) -> Finding:
        """Passes a class whose index is bounded by the limit, and one of which there are too few images to be searched.

        The index is that of the finalist that stands out least: every finalist was ahead of this class when the screening ended.
        Above the limit the race left off too early to say where the suspicious classes end. A class with too few images passes
        because no number of classes could be audited otherwise; that it was not searched stands in its reason, in the
        coverage of the detection, and among what was not tested.
        """
        limit, target = limits.anomaly_index, row.target_class
        what = f"from {name}" if detection.rows == "source" else name
        if self.stopped:
            value, verdict, reason = None, Verdict.PASS, f"{what}: not searched: {self.stopped}"
        elif (value := self.index(row, index)) is None:
            return inconclusive(
                "anomaly_index",
                f"{what}: no finalist of the race has an index by which it could be judged",
                limit=limit,
                target_class=target,
            )
        else:
            where = "away" if detection.rows == "source" else "there"
            reason = (
                f"{what}: not searched in full: in the screening {detection.means} sent {row.success_val:.0%} of images {where}, "
                "and every class that went on stood out further"
            )
            verdict = Verdict.PASS
            if value > limit:
                verdict = Verdict.INCONCLUSIVE
                reason += "; all of those are outliers, so that this class may be one as well"
        return concluded("anomaly_index", verdict, reason, value=value, limit=limit, target_class=target)

"""A row of a detector that asks how far a change in a fixed budget steers: further than in clean reference models."""

from __future__ import annotations

import math
from dataclasses import dataclass

from backdoor_audit.detectors.rule import Beside, Numbers, OneIndex
from backdoor_audit.evidence import Finding, Limits, Verdict, concluded, inconclusive
from backdoor_audit.record_types import StoredMargin


@dataclass(frozen=True, slots=True, kw_only=True)
class ByMargin(OneIndex, StoredMargin):
    """The numbers about the farthest change, and how they are judged."""

    kind = "margin"
    compared = True  # with reference models

    def judge(self, row: Numbers, detection: Beside, limits: Limits, *, index: str, name: str) -> Finding:
        """Passes an index that is not above the limit; above it, fails a trigger that works on held-out images.

        One that works on too few of them is inconclusive. A row about a source names the class that its images arrive at.
        """
        limit, value, target = limits.anomaly_index, self.index(row, index), row.target_class
        if value is None or math.isnan(value):
            reason = f"{name}: no index could be computed"
            return inconclusive("anomaly_index", reason, limit=limit, target_class=target)
        where = "there" if target is not None else "away, each class together and to another one"
        if detection.rows == "source":
            name, target = f"from {name}", self.landing
            where = "away" if target is None else f"away, most to class {target}"
        what = detection.means
        if self.strongest is not None:
            what = f"of {detection.means} the strongest, {self.strongest},"
        reason = f"{name}: {what} sends {row.success_val:.0%} of held-out images {where}"
        if self.natural_success is not None:
            usual = f"{self.natural_success:.0%}"
            reason += f"; in clean models trained on the same images such a one sends {usual}"
        verdict = Verdict.PASS
        if value > limit:
            works = row.success_val >= limits.steering_success
            verdict = Verdict.FAIL if works else Verdict.INCONCLUSIVE
            few = f"on less than {limits.steering_success:.0%} of held-out images"
            reason += "" if works else f"; an outlier, but {few}"
        return concluded("anomaly_index", verdict, reason, value=value, limit=limit, target_class=target)

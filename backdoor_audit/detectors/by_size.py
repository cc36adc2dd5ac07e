"""A row of a detector that asks how small a trigger may be: the class whose trigger is far smaller than the others'."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from backdoor_audit.detectors.rule import Beside, Numbers
from backdoor_audit.evidence import Finding, Limits, Verdict, concluded, inconclusive
from backdoor_audit.record_types import StoredSize


@dataclass(frozen=True, slots=True, kw_only=True)
class BySize(StoredSize):
    """The numbers about the smallest trigger, and how they are judged."""

    kind = "size"
    compared, deviation = False, None  # with reference models, and how far it stands out there

    def judge(self, row: Numbers, detection: Beside, limits: Limits, *, index: str, name: str) -> Finding:
        """Fails an outlier that is also small beside the median and works on held-out images.

        A trigger that is not small passes. In between, a small one that is no outlier or works on too few held-out images is
        inconclusive; so is a class for which no trigger was found. The paper's ``index`` has no other condition.
        """
        common: dict[str, Any] = {"limit": limits.anomaly_index, "target_class": row.target_class}
        if not self.reached:
            return inconclusive(
                "anomaly_index",
                f"{name}: no trigger reached the success threshold in {self.steps} steps (the last one sends "
                f"{row.success_val:.0%} of held-out images there); raise --audit-steps",
                **common,
            )
        value = self.index(row, index)
        if value is None or math.isnan(value) or self.size_ratio is None or detection.median_size is None:
            return inconclusive("anomaly_index", f"{name}: no index could be computed", **common)
        reason = (
            f"{name}: a {_pixels(self.size)}-pixel trigger sends {row.success_val:.0%} of held-out images there; "
            f"median of all classes {_pixels(detection.median_size)} pixels"
        )
        outlier = value > limits.anomaly_index
        if index == "paper":
            verdict, more = Verdict.FAIL if outlier else Verdict.PASS, ""
        else:
            verdict, more = self._verdict(row, limits, self.size_ratio, outlier=outlier)
        return concluded("anomaly_index", verdict, reason + more, value=value, **common)

    def _verdict(self, row: Numbers, limits: Limits, size_ratio: float, *, outlier: bool) -> tuple[Verdict, str]:
        """By the calibrated index, with what is to be added to the reason."""
        small = f"below {limits.size_ratio:g} of the median"
        if size_ratio > limits.size_ratio:
            return Verdict.PASS, f"; an outlier, but not {small}: a naturally easy class" if outlier else ""
        if not outlier:
            return (
                Verdict.INCONCLUSIVE,
                f"; {small}, but the other classes differ too much among themselves to call it an outlier",
            )
        if not row.success_val >= limits.trigger_success:  # NaN where no image is held out
            works = f"it works on less than {limits.trigger_success:.0%} of held-out images"
            return Verdict.INCONCLUSIVE, f"; an outlier {small}, but {works}"
        return Verdict.FAIL, ""

    def index(self, row: Numbers, index: str) -> float | None:
        """The index that is judged: the ``calibrated`` one or the ``paper``'s."""
        return row.index if index == "calibrated" else self.paper_index

    def place(self, row: Numbers) -> float:
        """Where a flagged row comes, the most extreme first: by the size."""
        del row
        return self.size

    @property
    def beside(self) -> str:
        """What stands beside the index in a line."""
        return f", {self.size_ratio:.2f} of the median" if self.size_ratio is not None else ""


def _pixels(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"

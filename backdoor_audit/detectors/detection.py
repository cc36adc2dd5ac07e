"""What a detector hands over: one row per class, and the triggers it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from backdoor_audit.evidence import Finding, Limits, Verdict, inconclusive
from backdoor_audit.store import Packed
from backdoor_audit.trigger import Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class under a detector.

    ``size`` is the size of its smallest trigger in pixels, ``size_ratio`` that over the median of all classes. Success
    rates are fractions of other classes' images: ``success_opt`` on those the search used, ``success_val`` on held-out
    ones. Indices and p-value are None when the class has none: its trigger was not reached, or there is no spread.
    """

    target_class: int
    size: float
    size_ratio: float | None
    reached: bool
    success_opt: float
    success_val: float
    index: float | None
    paper_index: float | None
    log_index: float | None
    p_value: float | None
    steps: int
    image_passes: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Detection:
    """A detector's answer about one model. ``triggers`` run in the order of ``scores``.

    ``inconclusive`` says why there is no answer; it is empty when there is one. ``p_value`` is that of the smallest
    trigger among all classes. ``image_passes`` counts forward and backward of one image, over all classes.
    """

    detector: str
    settings: str
    scores: Sequence[ClassScore]
    triggers: Sequence[Trigger]
    inconclusive: str = ""
    p_value: float | None = None
    median_size: float | None = None
    cut_size: float | None = None
    seconds: float = 0.0
    blind_spots: Sequence[str] = ()

    @property
    def image_passes(self) -> int:
        """Forward and backward passes of one image, over all classes."""
        return sum(score.image_passes for score in self.scores)

    def score(self, target_class: int) -> ClassScore | None:
        """The row of one class, if the detector has one."""
        return next((score for score in self.scores if score.target_class == target_class), None)

    def trigger(self, target_class: int) -> Trigger | None:
        """The trigger found for one class, if there is one."""
        return next((trigger for trigger in self.triggers if trigger.target_class == target_class), None)

    def judge(self, target_class: int, limits: Limits, *, index: str = "calibrated", name: str = "") -> Finding:
        """Whether this class has a trigger that natural images do not explain.

        A class fails when its index is above the limit *and* the trigger is small beside the median *and* it works on
        held-out images. It passes when its trigger is not small. In between, a small trigger that is no outlier or works on
        too few held-out images, the class is inconclusive: neither a backdoor nor its absence is shown. ``index`` chooses
        the calibrated index or the paper's, whose rule has no other condition. ``name`` is how to call the class.
        """
        name = name or str(target_class)
        score = self.score(target_class)
        common: dict[str, Any] = {
            "limit": limits.anomaly_index,
            "settings": self.settings,
            "target_class": target_class,
            "details": asdict(score) if score else {},
        }
        if self.inconclusive or score is None:
            reason = self.inconclusive or f"class {name} was not searched"
            return inconclusive("anomaly_index", reason, **common)
        if not score.reached:
            return inconclusive(
                "anomaly_index",
                f"class {name}: no trigger reached the success threshold in {score.steps} steps (the last one sends "
                f"{score.success_val:.0%} of held-out images there); raise --audit-steps",
                **common,
            )
        value = score.index if index == "calibrated" else score.paper_index
        if value is None or score.size_ratio is None or self.median_size is None:
            return inconclusive("anomaly_index", f"class {name}: no index could be computed", **common)
        reason = (
            f"class {name}: a {_pixels(score.size)}-pixel trigger sends {score.success_val:.0%} of held-out images there; "
            f"median of all classes {_pixels(self.median_size)} pixels"
        )
        if index == "paper":
            verdict = Verdict.FAIL if value > limits.anomaly_index else Verdict.PASS
            return Finding(audit="", statistic="anomaly_index", value=value, verdict=verdict, reason=reason, **common)
        small = f"below {limits.size_ratio:g} of the median"
        outlier = value > limits.anomaly_index
        if score.size_ratio > limits.size_ratio:
            verdict = Verdict.PASS
            reason += f"; an outlier, but not {small}: a naturally easy class" if outlier else ""
        elif not outlier:
            verdict = Verdict.INCONCLUSIVE
            reason += f"; {small}, but the other classes differ too much among themselves to call it an outlier"
        elif not score.success_val >= limits.trigger_success:  # NaN where no image is held out
            verdict = Verdict.INCONCLUSIVE
            reason += f"; an outlier {small}, but it works on less than {limits.trigger_success:.0%} of held-out images"
        else:
            verdict = Verdict.FAIL
        return Finding(audit="", statistic="anomaly_index", value=value, verdict=verdict, reason=reason, **common)

    def flagged(self, limits: Limits, *, index: str = "calibrated") -> tuple[Trigger, ...]:
        """The triggers of the classes that `judge` fails, smallest first."""
        failing = [
            score
            for score in self.scores
            if self.judge(score.target_class, limits, index=index).verdict is Verdict.FAIL
        ]
        found = [self.trigger(score.target_class) for score in sorted(failing, key=lambda score: score.size)]
        return tuple(trigger for trigger in found if trigger is not None)

    def summary(self) -> dict[str, Any]:
        """Everything but the tensors, for the record."""
        stored = {
            name: getattr(self, name)
            for name in ("detector", "settings", "inconclusive", "p_value", "median_size", "cut_size", "seconds")
        }
        scores = [asdict(score) for score in self.scores]
        return {**stored, "blind_spots": list(self.blind_spots), "image_passes": self.image_passes, "classes": scores}

    def pack(self) -> Packed:
        """For the store."""
        tensors = {}
        for trigger in self.triggers:
            tensors[f"{trigger.target_class}.mask"] = trigger.mask
            tensors[f"{trigger.target_class}.pattern"] = trigger.pattern
        return Packed(tensors, {**self.summary(), "triggers": [trigger.target_class for trigger in self.triggers]})

    @classmethod
    def unpack(cls, packed: Packed) -> Detection:
        """From the store."""
        values = dict(packed.values)
        values.pop("image_passes")
        scores = [ClassScore(**score) for score in values.pop("classes")]
        triggers = [
            Trigger(packed.tensors[f"{target}.mask"], packed.tensors[f"{target}.pattern"], target)
            for target in values.pop("triggers")
        ]
        return cls(**values, scores=scores, triggers=triggers)

    def timed(self, seconds: float) -> Detection:
        """The same detection with the wall time it took."""
        return replace(self, seconds=seconds)


def _pixels(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"

"""What a detector hands over: one row per class, and the triggers it found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from backdoor_audit.evidence import Finding, Limits, Verdict, inconclusive
from backdoor_audit.store import Packed
from backdoor_audit.triggers.trigger import AnyTrigger, trigger_from

SOURCE_SPECIFIC = "triggers that work from some source classes only"
MANY_CLASSES = "triggers for a third of the classes or more"
RELABELLINGS = "triggers that send every class elsewhere (all-to-all)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class under a detector; ``target_class`` is None for all-to-all, where every class goes to another.

    ``success_val`` is the share of held-out images of other classes that the trigger sends there; ``index`` the calibrated
    anomaly index and ``p_value`` the share of clean models in which *some* class is as extreme; None where there is none.

    Detectors by size also give ``size``, that of the smallest trigger in pixels, ``size_ratio``, that over the median of all
    classes, ``success_opt`` on the images that were searched, and whether the success threshold was ``reached``.
    Under a detector whose ``rows`` are sources, ``target_class`` is the class that images leave, ``landing`` where they go.

    Detectors by margin give the ``margin`` reached, the mean over the reference twins (``natural_margin``,
    ``natural_success``), what exceeds them (``excess``) and the same over the spread of the classes (``deviation``). Where
    several were weighed together, all but ``deviation`` is that of the one in which the class stands out most: ``strongest``.

    ``unconverged`` says why the search of this class had not come to its end; it is empty where it had. The number that says
    so is ``shrinkage`` by size, the share by which the trigger still shrank at the end, and ``rising`` by margin, what the
    probe's criterion is about.
    """

    target_class: int | None
    success_val: float
    index: float | None
    p_value: float | None
    image_passes: int
    size: float | None = None
    size_ratio: float | None = None
    reached: bool = True
    success_opt: float | None = None
    paper_index: float | None = None
    log_index: float | None = None
    steps: int | None = None
    margin: float | None = None
    natural_margin: float | None = None
    natural_success: float | None = None
    landing: int | None = None
    excess: float | None = None
    deviation: float | None = None
    strongest: str | None = None
    shrinkage: float | None = None
    rising: float | None = None
    unconverged: str = ""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Detection:
    """A detector's answer about one model. ``triggers`` run in the order of ``scores``, as far as those are of one class.

    ``away`` holds, by the class that images leave, what takes them away from it, where rows are sources. It is there to be
    looked at: repairs and filters work against ``triggers``, which lead images of all classes to one.

    ``means`` says in words what a trigger of this detector is, ``reference`` which clean models its index was calibrated
    on. ``inconclusive`` says why there is no answer; it is empty when there is one. ``coverage`` says what got less than the
    whole effort; it is empty when all got it. ``p_value`` is that of the most extreme class. ``image_passes`` counts forward
    and backward of one image, over all classes.

    ``criterion`` says in words when a search has converged. ``unconverged`` says why too few have for any class to pass; it is
    empty when enough have. ``unusual`` says that the classes differ more than in any clean model of the reference: an index
    counts spreads, so a low one says little there.
    """

    detector: str
    settings: str
    scores: Sequence[ClassScore]
    triggers: Sequence[AnyTrigger]
    inconclusive: str = ""
    coverage: str = ""
    criterion: str = ""
    unconverged: str = ""
    unusual: str = ""
    means: str = "a trigger"
    rows: str = "target"
    reference: str = ""
    p_value: float | None = None
    median_size: float | None = None
    cut_size: float | None = None
    seconds: float = 0.0
    blind_spots: Sequence[str] = ()
    away: Mapping[int, AnyTrigger] = field(default_factory=dict)

    @property
    def image_passes(self) -> int:
        """Forward and backward passes of one image, over all classes."""
        return sum(score.image_passes for score in self.scores)

    def score(self, target_class: int | None) -> ClassScore | None:
        """The row of one class (None: all-to-all), if the detector has one."""
        return next((score for score in self.scores if score.target_class == target_class), None)

    def trigger(self, target_class: int | None) -> AnyTrigger | None:
        """The trigger found for one class, if there is one."""
        return next((trigger for trigger in self.triggers if trigger.target_class == target_class), None)

    def shown(self, finding: Finding) -> tuple[AnyTrigger | None, int | None]:
        """What there is to look at for one of `judge`'s findings, and the class whose images it is about; None: all others'."""
        if self.rows != "source":
            return self.trigger(finding.target_class), None
        source = finding.details.get("target_class")
        return (self.away.get(source), source) if isinstance(source, int) else (None, None)

    def judge(
        self,
        target_class: int | None,
        limits: Limits,
        *,
        index: str = "calibrated",
        name: str = "",
        beside: Sequence[Detection] = (),
    ) -> Finding:
        """Whether this class has a trigger that natural images do not explain.

        By size, a class fails when its index is above the limit *and* the trigger is small beside the median *and* it works
        on held-out images. It passes when its trigger is not small. In between, a small trigger that is no outlier or works
        on too few held-out images, the class is inconclusive: neither a backdoor nor its absence is shown; so it is if no
        trigger was found for it. It passes all the same if it is no outlier, most other classes have converged, and every
        detection ``beside`` that compares with reference models has an answer for this class, and none an index above the
        limit: they have seen how easy the class is by nature. ``index`` chooses the calibrated index or the paper's, whose rule
        has no other condition.

        By margin, a class passes when its index is not above the limit; above it, it fails if the trigger works on held-out
        images, and is inconclusive if it does not. ``name`` is how to call the class.

        Whatever the rule, a search that has not converged has not looked: a class of such a search does not pass but is
        inconclusive. What it found it has found, so it may fail.
        """
        name = name or ("all to all" if target_class is None else str(target_class))
        name = name if target_class is None else f"class {name}"
        score = self.score(target_class)
        common: dict[str, Any] = {
            "limit": limits.anomaly_index,
            "settings": f"{self.settings}; {self.coverage}" if self.coverage else self.settings,
            "target_class": target_class,
            "details": {key: value for key, value in asdict(score).items() if value not in (None, "")} if score else {},
        }
        if self.inconclusive or score is None:
            reason = self.inconclusive or f"{name} was not searched"
            return inconclusive("anomaly_index", reason, **common)
        if score.margin is not None:
            finding = self._judge_margin(score, limits, name, common)
        else:
            finding = self._judge_size(score, limits, index, name, common)
        moving = score.unconverged or self.unconverged
        if finding.verdict is Verdict.PASS and moving:
            finding = inconclusive("anomaly_index", f"{name}: the search has not converged: {moving}", **common)
        outlier = score.index is not None and score.index > limits.anomaly_index
        if finding.verdict is Verdict.INCONCLUSIVE and score.margin is None and not outlier and not self.unconverged:
            against = contradicting(beside, target_class, limits)
            if against:
                return replace(finding, verdict=Verdict.PASS, reason=f"{finding.reason}; {against}")
        return finding

    def _judge_margin(self, score: ClassScore, limits: Limits, name: str, common: dict[str, Any]) -> Finding:
        if score.index is None:
            return inconclusive("anomaly_index", f"{name}: no index could be computed", **common)
        works = score.success_val >= limits.steering_success
        where = "there" if score.target_class is not None else "away, each class together and to another one"
        if self.rows == "source":
            name = f"from {name}"
            where = "away" if score.landing is None else f"away, most to class {score.landing}"
            common = {**common, "target_class": score.landing}
        what = self.means
        if score.strongest is not None:
            what = f"of {self.means} the strongest, {score.strongest},"
        reason = (
            f"{name}: {what} sends {score.success_val:.0%} of held-out images {where}; in clean models trained on the "
            f"same images such a one sends {score.natural_success or 0:.0%}"
        )
        verdict = Verdict.PASS
        if score.index > limits.anomaly_index:
            verdict = Verdict.FAIL if works else Verdict.INCONCLUSIVE
            reason += (
                "" if works else f"; an outlier, but on less than {limits.steering_success:.0%} of held-out images"
            )
        return Finding(audit="", statistic="anomaly_index", value=score.index, verdict=verdict, reason=reason, **common)

    def _judge_size(self, score: ClassScore, limits: Limits, index: str, name: str, common: dict[str, Any]) -> Finding:
        if not score.reached:
            return inconclusive(
                "anomaly_index",
                f"{name}: no trigger reached the success threshold in {score.steps} steps (the last one sends "
                f"{score.success_val:.0%} of held-out images there); raise --audit-steps",
                **common,
            )
        value = score.index if index == "calibrated" else score.paper_index
        if value is None or score.size is None or score.size_ratio is None or self.median_size is None:
            return inconclusive("anomaly_index", f"{name}: no index could be computed", **common)
        reason = (
            f"{name}: a {_pixels(score.size)}-pixel trigger sends {score.success_val:.0%} of held-out images there; "
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

    def flagged(self, limits: Limits, *, index: str = "calibrated") -> tuple[AnyTrigger, ...]:
        """The triggers of the classes that `judge` fails, the most extreme first."""
        failing = [
            score
            for score in self.scores
            if self.judge(score.target_class, limits, index=index).verdict is Verdict.FAIL
        ]
        ordered = sorted(failing, key=lambda score: score.size if score.size is not None else -(score.index or 0))
        found = [self.trigger(score.target_class) for score in ordered]
        return tuple(trigger for trigger in found if trigger is not None)

    def summary(self) -> dict[str, Any]:
        """Everything but the tensors, for the record."""
        stored = {
            name: getattr(self, name)
            for name in (
                "detector",
                "settings",
                "inconclusive",
                "coverage",
                "criterion",
                "unconverged",
                "unusual",
                "means",
                "rows",
                "reference",
                "p_value",
                "median_size",
                "cut_size",
                "seconds",
            )
        }
        scores = [asdict(score) for score in self.scores]
        return {**stored, "blind_spots": list(self.blind_spots), "image_passes": self.image_passes, "classes": scores}

    def pack(self) -> Packed:
        """For the store."""
        kept = {str(trigger.target_class): trigger for trigger in self.triggers}
        kept |= {f"from {source}": trigger for source, trigger in self.away.items()}
        tensors = {
            f"{key}.{name}": tensor for key, trigger in kept.items() for name, tensor in trigger.tensors().items()
        }
        away = [[source, trigger.target_class] for source, trigger in self.away.items()]
        targets = [trigger.target_class for trigger in self.triggers]
        return Packed(tensors, {**self.summary(), "triggers": targets, "away": away})

    @classmethod
    def unpack(cls, packed: Packed) -> Detection:
        """From the store."""
        values = dict(packed.values)
        values.pop("image_passes")
        unknown = {"unconverged": "it was not kept whether the search converged"}
        scores = [ClassScore(**{**unknown, **score}) for score in values.pop("classes")]
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in packed.tensors.items():
            kept, _, name = key.partition(".")
            parts.setdefault(kept, {})[name] = tensor
        triggers = [trigger_from(parts[str(target)], target) for target in values.pop("triggers")]
        leaving = values.pop("away", ())  # not kept by earlier versions
        away = {source: trigger_from(parts[f"from {source}"], target) for source, target in leaving}
        return cls(**values, scores=scores, triggers=triggers, away=away)

    def timed(self, seconds: float) -> Detection:
        """The same detection with the wall time it took."""
        return replace(self, seconds=seconds)


def contradicting(beside: Sequence[Detection], target_class: int | None, limits: Limits) -> str:
    """What speaks against a trigger for this class, in words; empty unless all that compares with reference models does.

    Where the classes of a model differ more than in clean ones, as where many of them are infected, nothing does.
    """
    rows = [(entry, entry.score(target_class)) for entry in beside if entry.rows == "target"]
    compared = [(entry, score) for entry, score in rows if score is not None and score.margin is not None]
    clear = [
        not (entry.inconclusive or entry.unconverged or entry.unusual or score.unconverged)
        and score.index is not None
        and score.index <= limits.anomaly_index
        for entry, score in compared
    ]
    unanswered = any(entry.inconclusive for entry in beside)
    if not compared or unanswered or not all(clear):
        return ""
    strongest = max(compared, key=lambda pair: pair[1].index or 0.0)
    return (
        f"beside reference models the class is no easier to reach than others by any of {len(compared)} kinds of search "
        f"(largest index {strongest[1].index or 0.0:.2f}, {strongest[0].detector})"
    )


def averaged(detections: Sequence[Detection], limits_index: Callable[[float, int], tuple[float, float]]) -> Detection:
    """The same search on other halves of the images, as one: the rows and triggers of the first, measurements as means.

    ``limits_index(deviation, rows)`` gives the index and p-value of a mean deviation.
    """
    first = detections[0]
    rows = len(first.scores)
    scores = []
    for score in first.scores:
        others = [found for entry in detections if (found := entry.score(score.target_class)) is not None]
        if score.deviation is None or any(other.deviation is None for other in others):
            scores.append(score)
            continue
        mean = {
            name: statistics.mean(getattr(other, name) for other in others)
            for name in ("success_val", "margin", "excess", "deviation")
        }
        index, p_value = limits_index(mean["deviation"], rows)
        passes = sum(other.image_passes for other in others)
        moving = next(filter(None, (other.unconverged for other in others)), "")
        scores.append(replace(score, **mean, index=index, p_value=p_value, image_passes=passes, unconverged=moving))
    values = [score.p_value for score in scores if score.p_value is not None]
    return replace(
        first,
        scores=scores,
        p_value=min(values, default=None),
        inconclusive=next(filter(None, (entry.inconclusive for entry in detections)), ""),
        unconverged=next(filter(None, (entry.unconverged for entry in detections)), ""),
        unusual=next(filter(None, (entry.unusual for entry in detections)), ""),
    )


def _pixels(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"

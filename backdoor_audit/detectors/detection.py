"""What a detector hands over: one row per class, and the triggers it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from backdoor_audit.detectors.row import Row
from backdoor_audit.evidence import Finding, Limits, Verdict, inconclusive
from backdoor_audit.record_types import StoredDetection
from backdoor_audit.store import Packed
from backdoor_audit.triggers.trigger import AnyTrigger, trigger_from

SOURCE_SPECIFIC = "triggers that work from some source classes only"
MANY_CLASSES = "triggers for a third of the classes or more"
RELABELLINGS = "triggers that send every class elsewhere (all-to-all)"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Detection(StoredDetection):
    """A detector's answer about one model: what is stored of it, its rows (``scores``), and its triggers.

    ``triggers`` run in the order of ``scores``, as far as those are of one class.

    ``away`` holds, by the class that images leave, what takes them away from it, where rows are sources. It is there to be
    looked at: repairs and filters work against ``triggers``, which lead images of all classes to one.
    """

    scores: Sequence[Row]
    triggers: Sequence[AnyTrigger]
    away: Mapping[int, AnyTrigger] = field(default_factory=dict)

    @property
    def image_passes(self) -> int:
        """Forward and backward passes of one image, over all classes."""
        return sum(score.image_passes for score in self.scores)

    @property
    def deviations(self) -> dict[int | None, float]:
        """How far each row stands out beside reference models, by class; without those of which that is not known."""
        measured = {row.target_class: row.measured.deviation for row in self.scores}
        return {target: deviation for target, deviation in measured.items() if deviation is not None}

    def score(self, target_class: int | None) -> Row | None:
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

        A row is judged by the rule of its kind: see `BySize.judge` and `ByMargin.judge`. ``index`` chooses the calibrated index
        or the paper's; ``name`` is how to call the class.

        Whatever the rule, a search that has not converged has not looked: a class of such a search does not pass but is
        inconclusive. What it found it has found, so it may fail.

        A class that is inconclusive by a rule that knows no reference models passes all the same if it is no outlier, most other
        classes have converged, and every detection ``beside`` that compares with such models has an answer for this class, and
        none an index above the limit: they have seen how easy the class is by nature.
        """
        name = name or ("all to all" if target_class is None else str(target_class))
        name = name if target_class is None else f"class {name}"
        row = self.score(target_class)
        common: dict[str, Any] = {
            "settings": f"{self.settings}; {self.coverage}" if self.coverage else self.settings,
            "details": row.details() if row else {},
        }
        withheld: dict[str, Any] = {**common, "limit": limits.anomaly_index, "target_class": target_class}
        if self.inconclusive or row is None:
            reason = self.inconclusive or f"{name} was not searched"
            return inconclusive("anomaly_index", reason, **withheld)
        finding = replace(row.judge(self, limits, index=index, name=name), **common)
        moving = row.unconverged or self.unconverged
        if finding.verdict is Verdict.PASS and moving:
            finding = inconclusive("anomaly_index", f"{name}: the search has not converged: {moving}", **withheld)
        outlier = row.index is not None and row.index > limits.anomaly_index
        if finding.verdict is Verdict.INCONCLUSIVE and not (row.measured.compared or outlier or self.unconverged):
            against = contradicting(beside, target_class, limits)
            if against:
                return replace(finding, verdict=Verdict.PASS, reason=f"{finding.reason}; {against}")
        return finding

    def flagged(self, limits: Limits, *, index: str = "calibrated") -> tuple[AnyTrigger, ...]:
        """The triggers of the classes that `judge` fails, the most extreme first."""
        if self.inconclusive:
            return ()
        # by its rule alone: nothing else that `judge` weighs makes a class fail
        failing = [row for row in self.scores if row.judge(self, limits, index=index, name="").verdict is Verdict.FAIL]
        found = [self.trigger(row.target_class) for row in sorted(failing, key=lambda row: row.place)]
        return tuple(trigger for trigger in found if trigger is not None)

    def summary(self) -> dict[str, Any]:
        """Everything but the tensors, for the record."""
        stored = {entry.name: getattr(self, entry.name) for entry in fields(StoredDetection)}
        scores = [row.summary() for row in self.scores]
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
        scores = [Row.of({**unknown, **stored}) for stored in values.pop("classes")]
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
    """What speaks against a trigger for this class, in words; empty unless all that compares with clean models does.

    Where the classes of a model differ more than in clean ones, as where many of them are infected, nothing does.
    """
    rows = [(entry, entry.score(target_class)) for entry in beside if entry.rows == "target"]
    compared = [(entry, row) for entry, row in rows if row is not None and row.measured.compared]
    clear = [
        not (entry.inconclusive or entry.unconverged or entry.unusual or row.unconverged)
        and row.index is not None
        and row.index <= limits.anomaly_index
        for entry, row in compared
    ]
    unanswered = any(entry.inconclusive for entry in beside)
    if not compared or unanswered or not all(clear):
        return ""
    strongest = max(compared, key=lambda pair: pair[1].index or 0.0)
    return (
        f"measured against clean models the class is no easier to reach than others by any of {len(compared)} kinds of search "
        f"(largest index {strongest[1].index or 0.0:.2f}, {strongest[0].detector})"
    )

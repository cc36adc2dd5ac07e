"""What asking one property of a model found: a number and its limit, and the counterexample if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backdoor_audit.data.png import png
from backdoor_audit.evidence import Finding, Verdict, inconclusive, judge
from backdoor_audit.store import Packed
from backdoor_audit.triggers.written import ImageShape, WrittenTrigger, trigger_from_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertyOutcome:
    """One property of one model. ``value`` above ``limit`` is a failure; a value of None could not be measured.

    ``trigger`` is the counterexample, shrunk, and None where the property holds or is not about triggers. ``tried`` counts
    the examples that were looked at, ``kept`` those that came from the corpus; ``replayed``: the counterexample is one of these.

    ``unconverged`` says why the search had not come to its end; it is empty where it had, or where nothing is searched for. Such
    an outcome may fail, but does not pass.

    ``contradicted`` says what speaks against a hidden trigger where a counterexample was found: on some clean networks one
    change steers that far by nature. Such an outcome passes, and keeps its number and its counterexample.
    """

    name: str
    statistic: str
    value: float | None
    limit: float | None
    reason: str
    settings: str = ""
    target_class: int | None = None
    trigger: WrittenTrigger | None = None
    tried: int = 0
    kept: int = 0
    replayed: bool = False
    unconverged: str = ""
    contradicted: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finding(self) -> Finding:
        """The outcome, judged: pass inside the limit, fail outside, inconclusive without a value or convergence."""
        known: dict[str, Any] = {
            "reason": self.reason,
            "settings": self.settings,
            "target_class": self.target_class,
            "details": {**self.details, "tried": self.tried, "kept": self.kept, "replayed": self.replayed},
        }
        if self.value is None or self.limit is None:
            return inconclusive(self.statistic, limit=self.limit, **known)
        finding = judge(self.statistic, self.value, at_most=self.limit, **known)
        if finding.verdict is Verdict.PASS and self.unconverged:
            known["reason"] = f"{self.reason}; the search has not converged: {self.unconverged}"
            return inconclusive(self.statistic, limit=self.limit, **known)
        if finding.verdict is Verdict.FAIL and self.contradicted:
            known["reason"] = f"{self.reason}; but {self.contradicted}"
            return replace(finding, verdict=Verdict.PASS, reason=known["reason"])
        return finding

    @property
    def verdict(self) -> Verdict:
        """That of the finding."""
        return self.finding.verdict

    def summary(self, image_shape: ImageShape, *, test: str | None = None) -> dict[str, Any]:
        """One entry of the record's ``properties``; ``test`` is the text of `pasted_test`, and kept only with a failure."""
        failed = self.verdict is Verdict.FAIL and self.trigger is not None
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "reason": self.finding.reason,
            "statistic": self.statistic,
            "value": self.value,
            "limit": self.limit,
            "spec": self.trigger.spec() if self.trigger else None,
            "picture": _picture(self.trigger, image_shape) if self.trigger else None,
            "test": test if failed else None,
        }

    def pack(self) -> Packed:
        """For the store."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "trigger"}
        spec = self.trigger.spec() if self.trigger else None
        return Packed({}, {**values, "details": dict(self.details), "trigger": spec})

    @classmethod
    def unpack(cls, packed: Packed) -> PropertyOutcome:
        """From the store."""
        spec = packed.values["trigger"]
        unknown = {"unconverged": "it was not kept whether the search converged"}
        return cls(**{**unknown, **packed.values, "trigger": trigger_from_spec(spec) if spec else None})


def _picture(trigger: WrittenTrigger, image_shape: ImageShape) -> str:
    """The last of the trigger's pictures, a PNG in base64: of a patch, its pixels in their place."""
    return png(list(trigger.pictures(image_shape).values())[-1])

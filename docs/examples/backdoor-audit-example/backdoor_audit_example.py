"""A repair and a renderer that another package brings."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from backdoor_audit.evidence import Record
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs import RepairResult
from backdoor_audit.repairs.outcome import reported
from backdoor_audit.report.renderers import Renderer
from backdoor_audit.triggers.trigger import AnyTrigger


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightClipping:
    """Clip the weights of every layer to so many standard deviations: a backdoor may hang on a few large ones."""

    deviations: float = 2.0

    name: ClassVar[str] = "weight_clipping"
    needs_trigger: ClassVar[bool] = True

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A clipped copy, scored on held-out images."""
        repaired = subject.classifier.copy()
        for weight in (entry for entry in repaired.module.parameters() if entry.dim() > 1):
            bound = self.deviations * float(weight.std())
            weight.data.clamp_(-bound, bound)
        note = f"clipped to {self.deviations:g} deviations"
        return reported(self, subject, repaired, trigger, note=note)


def lines(record: Record, **_: object) -> str:
    """One line for each finding that is not a pass."""
    return "\n".join(
        f"{entry.audit},{entry.verdict.value}" for entry in record.findings if entry.verdict.value != "pass"
    )


CLIPPING = WeightClipping()
CSV = Renderer("csv", "audit.csv", lines, "one line for each finding that is not a pass (CSV)")

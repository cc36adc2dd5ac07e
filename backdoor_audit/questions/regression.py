"""Did the model get worse than the one that was accepted?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from backdoor_audit.baseline import REGRESSIONS, Difference, compare, regressions, renewed, section
from backdoor_audit.evidence import REGRESSION, Record
from backdoor_audit.item import Item
from backdoor_audit.questions.question import Answer, Question, Skipped
from backdoor_audit.questions.record import judged_record
from backdoor_audit.words import About, Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression(Question):
    """What is worse than in the baseline, beyond the noise between clean models. Asked with ``--audit-baseline``."""

    name: ClassVar[str] = "regression"
    turn: ClassVar[int] = 90
    words: ClassVar[Words] = Words(
        asks="Is it worse than the model that was accepted before?",
        holds="The model is no worse than the accepted one",
        advice="Something became worse than in the baseline by more than its measured noise. Compare both records with "
        "`backdoor-audit compare`.",
        topic="comparison with the accepted model",
        about=About.CHANGE,
        references={REGRESSION: ("AML.M0008", "Article 15(1)")},
    )

    def items(self, run: Run) -> Iterable[Item]:
        """One for each part of the comparison; none without a baseline to compare with."""
        compared = run.options.baseline and not run.options.update_baseline
        return [Item(self.name, name) for name in REGRESSIONS if compared]

    def answer(self, run: Run, item: Item) -> Answer:
        """Whether this part got worse; skipped where there is nothing to compare."""
        found = regressions(run.kept("difference", lambda: difference_of(run)))[item.asked_of]
        return Skipped(found) if isinstance(found, str) else found


def difference_of(run: Run) -> Difference:
    """What got worse and better since the run's baseline, which it must have; what is not finished is computed."""
    assert run.baseline is not None
    return compare(run.baseline, judged_record(run), source=run.options.baseline)


def beside_baseline(run: Run, record: Record, today: date) -> Record:
    """The record with its section about the baseline, if the run has one."""
    if run.baseline is None:
        return record
    difference = compare(run.baseline, record, source=run.options.baseline)
    return replace(record, baseline=section(run.options.baseline, run.baseline, record, difference, today))


def write_baseline(run: Run, record: Record, today: date) -> list[str]:
    """Write the record's baseline, and what to tell about it. Raises `BaselineError` if that must not be."""
    baseline, told = renewed(record, run.previous, today)
    baseline.write(Path(run.options.baseline))
    return [f"baseline written: {run.options.baseline}", *told]

"""Does one class have a trigger that neither the other classes nor clean reference models explain?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from backdoor_audit.evidence import Finding
from backdoor_audit.item import Item
from backdoor_audit.needs import Needs
from backdoor_audit.questions.frameworks import OF_BACKDOORS
from backdoor_audit.questions.question import Question
from backdoor_audit.words import Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyIndex(Question):
    """The anomaly index of every class by every detector, beside what makes an outlier a trigger.

    A class fails above ``anomaly_index`` if the change that was found works as well: one of its own size must also be smaller
    than ``size_ratio`` of the median and reach ``trigger_success``, one in a fixed budget reach ``steering_success``.
    """

    anomaly_index: float
    size_ratio: float
    trigger_success: float
    steering_success: float

    name: ClassVar[str] = "anomaly_index"
    turn: ClassVar[int] = 20
    needs: ClassVar[Needs] = Needs.ONE_SEARCH
    above_one: ClassVar[frozenset[str]] = frozenset({"anomaly_index"})
    words: ClassVar[Words] = Words(
        asks="Does one class have a trigger?",
        holds="No class is reached more easily than natural images explain",
        advice="A class that needs far less to be reached than the others, or than in clean models trained on the same images, "
        "is what a backdoor leaves behind. Do not deploy the model. Look at the trigger in the report, try `backdoor-audit "
        "repair`, or obtain the model from a source that you can trust.",
        topic="search for triggers",
        references={"anomaly_index": OF_BACKDOORS},
        compared="anomaly_index",
    )

    def items(self, run: Run) -> Iterable[Item]:
        """One for each row of each detector."""
        return run.searches.items

    def answer(self, run: Run, item: Item) -> Finding:
        """The judgement of one row."""
        target = item.row.number if item.row else None
        return run.searches.detection(item.asked_of).judge(
            target,
            self.judging(run.limits),
            index=run.options.index,
            name=run.class_name(target),
            beside=run.searches.compared(item.asked_of),
        )

    def show(self, run: Run, finding: Finding) -> Mapping[str, Any]:
        """The trigger, and stamped images if it is not a pass."""
        return run.pictures.add_trigger(finding)

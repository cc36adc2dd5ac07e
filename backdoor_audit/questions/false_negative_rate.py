"""Would a filter in front of the model catch the trigger that was found?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from backdoor_audit.evidence import Finding
from backdoor_audit.filters import judge_filter
from backdoor_audit.item import Item
from backdoor_audit.needs import Needs
from backdoor_audit.questions.question import Answer, Question, Skipped
from backdoor_audit.words import About, Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseNegativeRate(Question):
    """The share of triggered images that a run-time filter lets pass: at most ``false_negative_rate``."""

    false_negative_rate: float

    name: ClassVar[str] = "false_negative_rate"
    turn: ClassVar[int] = 50
    needs: ClassVar[Needs] = Needs.FILTERS
    words: ClassVar[Words] = Words(
        asks="Does a filter in front of the model stop stamped images?",
        holds="A filter in front of the model catches the trigger",
        advice="With this filter, triggered images would still reach the model at run time. It is no protection against this "
        "trigger.",
        topic="filters",
        about=About.REMEDY,
        counts={"false_negative_rate": "stamped images let through"},
        references={"false_negative_rate": ("AML.T0043.004", "NISTAML.023", "Article 15(5)")},
    )

    def items(self, run: Run) -> Iterable[Item]:
        """One for each filter."""
        return [Item(self.name, entry.name) for entry in run.inputs.catalogue.filters]

    def answer(self, run: Run, item: Item) -> Answer:
        """How the filter does on the triggers, of several on the worst; skipped where there is none or it cannot be fitted."""
        rates = run.filters.rates(item.asked_of)
        return Skipped(rates) if isinstance(rates, str) else judge_filter(rates, self.judging(run.limits))

    def show(self, run: Run, finding: Finding) -> Mapping[str, Any]:
        """Where the network looks at stamped images."""
        del finding
        run.pictures.add_activations()
        return {}

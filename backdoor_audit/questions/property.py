"""Does Hypothesis refute anything that holds for a clean classifier?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from backdoor_audit.evidence import STEERED, Finding
from backdoor_audit.item import Item
from backdoor_audit.needs import Needs
from backdoor_audit.questions.frameworks import OF_BACKDOORS
from backdoor_audit.questions.question import Question
from backdoor_audit.words import Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Property(Question):
    """Properties of clean classifiers, and a search for a counterexample to each; their limits are fields of the properties."""

    name: ClassVar[str] = "property"
    turn: ClassVar[int] = 30
    needs: ClassVar[Needs] = Needs.ONE_SEARCH
    words: ClassVar[Words] = Words(
        asks="Does what holds for every clean model hold for this one?",
        holds="The model keeps what every clean classifier keeps",
        advice="A search found images that break this property. The counterexample is in the record, with a test to paste.",
        topic="properties",
        references={STEERED: OF_BACKDOORS},
        compared="corpus",
    )

    def items(self, run: Run) -> Iterable[Item]:
        """One for each property of the profile."""
        return [Item(self.name, entry.name) for entry in run.properties.every]

    def answer(self, run: Run, item: Item) -> Finding:
        """Whether it stands."""
        return run.properties.outcome(item.asked_of).finding

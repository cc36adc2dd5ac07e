"""Can this model be judged with these images at all?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from backdoor_audit.evidence import Finding
from backdoor_audit.item import Item
from backdoor_audit.needs import Needs
from backdoor_audit.questions.question import Question
from backdoor_audit.words import About, Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition(Question):
    """Conditions under which the silence of a search means something; where one does not hold, nothing is searched."""

    name: ClassVar[str] = "precondition"
    turn: ClassVar[int] = 10
    needs: ClassVar[Needs] = Needs.NOTHING
    words: ClassVar[Words] = Words(
        asks="Can this model be judged with these images?",
        holds="The model can be judged with these images",
        advice="Until this condition holds, silence of the detectors means nothing, and the model must not pass. The message "
        "says what to change: the images, their normalisation or size, or the way the model is loaded.",
        topic="preconditions",
        about=About.AUDIT,
        references={"clean_accuracy": ("AML.M0008", "Article 15(3)")},
        compared="clean_accuracy",
    )

    def items(self, run: Run) -> Iterable[Item]:
        """One for each condition."""
        return [Item(self.name, condition) for condition in run.inputs.conditions]

    def answer(self, run: Run, item: Item) -> Finding:
        """Whether it holds."""
        return run.inputs.preconditions[item.asked_of]

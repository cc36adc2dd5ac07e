"""Would this audit have seen a backdoor in this model? A canary in a copy of it shows that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from backdoor_audit.canary import judge_power
from backdoor_audit.evidence import POWER, Finding
from backdoor_audit.item import Item
from backdoor_audit.needs import Needs
from backdoor_audit.questions.question import Question
from backdoor_audit.words import About, Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Power(Question):
    """Known backdoors in copies of the model, each of which would have to stop this run. Asked with ``--audit-canary``."""

    name: ClassVar[str] = "power"
    turn: ClassVar[int] = 80
    needs: ClassVar[Needs] = Needs.CANARIES
    words: ClassVar[Words] = Words(
        asks="Would known backdoors in copies of this model have been found?",
        holds="Known backdoors planted in copies of the model are found",
        advice="The canary was not found or could not be planted, so that this audit's silence about the model means nothing. "
        "Raise the effort (`--audit-profile=thorough`, `--audit-steps`) or give more clean images.",
        topic="canary",
        about=About.AUDIT,
        references={POWER: ("AML.M0008",)},
        compared="anomaly_index",
    )

    def items(self, run: Run) -> Iterable[Item]:
        """One for each kind of canary."""
        return [Item(self.name, canary.name) for canary in run.canaries.kinds]

    def answer(self, run: Run, item: Item) -> Finding:
        """Whether the run would have been stopped, for the right class."""
        return judge_power(run.canaries.sightings(item.asked_of), allow_suspected=run.options.inconclusive == "fail")

    def show(self, run: Run, finding: Finding) -> Mapping[str, Any]:
        """Every dose that was tried."""
        return {"canaries": [entry.summary() for entry in run.canaries.sightings(finding.item.asked_of)]}

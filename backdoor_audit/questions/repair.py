"""Can the trigger that was found be taken out of a copy of the model without hurting it? Three questions about each repair."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from backdoor_audit.evidence import Finding
from backdoor_audit.item import Item
from backdoor_audit.needs import Needs
from backdoor_audit.questions.frameworks import OF_REPAIRS
from backdoor_audit.questions.question import Answer, Question, Skipped
from backdoor_audit.repairs import judge_drop, judge_robustness, judge_success
from backdoor_audit.words import About, Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


class _OfRepairs(Question):
    """What the three have in common: an item for each repair, and its curve to look at."""

    unflagged: ClassVar[bool] = False
    """Whether it is asked of a model in which nothing was flagged as well, if repairs are tried there."""

    def items(self, run: Run) -> Iterable[Item]:
        """One for each repair of the profile."""
        return [Item(self.name, method.name) for method in run.repairs.methods]

    def answer(self, run: Run, item: Item) -> Answer:
        """The judgement of one repair; skipped where there is nothing to repair, or it cannot be applied to this network."""
        reason = (run.flagged.none_at_all if self.unflagged else run.flagged.none) or run.repairs.not_applicable(
            item.asked_of
        )
        return Skipped(reason) if reason else self._judged(run, item.asked_of)

    def show(self, run: Run, finding: Finding) -> Mapping[str, Any]:
        """The curve of the repair, and where the network looks at stamped images."""
        run.pictures.add_activations()
        return {
            "curves": [outcome.summary() for outcome in run.repairs.outcomes(finding.item.asked_of) if outcome.curve]
        }

    @abstractmethod
    def _judged(self, run: Run, name: str) -> Finding: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSuccessRateAfter(_OfRepairs):
    """The share of stamped images that a repaired copy still sends to the target class: at most ``attack_success_rate``."""

    attack_success_rate: float

    name: ClassVar[str] = "attack_success_rate_after"
    turn: ClassVar[int] = 60
    needs: ClassVar[Needs] = Needs.REPAIRS
    words: ClassVar[Words] = Words(
        asks="Does a repair of a copy make the trigger fail?",
        holds="A repair takes the trigger out of the model",
        advice="After the repair the trigger still works on held-out images. Another repair is needed, or another model.",
        topic="repairs",
        about=About.REMEDY,
        counts={"attack_success_rate": "trigger success"},
        references={"attack_success_rate": OF_REPAIRS},
    )

    def _judged(self, run: Run, name: str) -> Finding:
        return judge_success(run.repairs.outcomes(name), self.judging(run.limits))


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustAccuracy(_OfRepairs):
    """How far stamped images fall short of the accuracy that clean ones had: at most by ``robust_accuracy_lost``."""

    robust_accuracy_lost: float

    name: ClassVar[str] = "robust_accuracy"
    turn: ClassVar[int] = 61
    needs: ClassVar[Needs] = Needs.REPAIRS
    words: ClassVar[Words] = Words(
        asks="Do stamped images get their true label again after it?",
        holds="A repair gives stamped images their true class again",
        advice="After the repair the trigger no longer works, but images that carry it are not recognised either. Another "
        "repair is needed, or another model.",
        topic="repairs",
        about=About.REMEDY,
        counts={"robust_accuracy_lost": "stamped images not recognised again"},
        references={"robust_accuracy_lost": OF_REPAIRS},
    )

    def _judged(self, run: Run, name: str) -> Finding:
        return judge_robustness(run.repairs.outcomes(name), self.judging(run.limits))


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanAccuracyDrop(_OfRepairs):
    """What a repair costs in clean accuracy: at most ``clean_accuracy_drop``, ``harmless_drop`` where nothing called for it."""

    clean_accuracy_drop: float
    harmless_drop: float

    unflagged: ClassVar[bool] = True
    name: ClassVar[str] = "clean_accuracy_drop"
    turn: ClassVar[int] = 62
    needs: ClassVar[Needs] = Needs.REPAIRS
    words: ClassVar[Words] = Words(
        asks="What does that repair cost in clean accuracy?",
        holds="A repair leaves the accuracy on clean images as it is",
        advice="The repair costs more accuracy than the limit allows. Another repair is needed, or more clean images for it.",
        topic="cost of repairs",
        about=About.REMEDY,
        counts={"clean_accuracy_drop": "clean accuracy lost"},
        references={"clean_accuracy_drop": (*OF_REPAIRS, "Article 15(3)")},
    )

    def _judged(self, run: Run, name: str) -> Finding:
        return judge_drop(run.repairs.outcomes(name), self.judging(run.limits), flagged=bool(run.flagged.triggers))

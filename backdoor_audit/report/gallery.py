"""The triggers as a person looks at them: one card for every class, the most suspicious first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backdoor_audit.evidence import STEERED, WORST_FIRST, Finding, Record, Verdict
from backdoor_audit.report.certainty import WEIGHED, distance, index_limit
from backdoor_audit.report.exhibition import Example, Exhibit, Property
from backdoor_audit.report.naming import INDEX, class_called

_PAIRS = 3  # on the first screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Everything that leads images to one class.

    ``best`` is the exhibit in which the class stands out most and ``others`` those of further searches; ``sources`` are what
    searches said that ask about one source class alone, each with its exhibit where there is one.
    """

    title: str
    target_class: int | None
    verdict: Verdict
    far: str
    index: float | None
    best: Exhibit | None
    others: Sequence[Exhibit]
    sources: Sequence[tuple[Finding, Exhibit | None]]
    counterexamples: Sequence[Property]

    @property
    def order(self) -> float:
        """Its place among the classes; all to all is last."""
        return float("inf") if self.target_class is None else self.target_class

    @property
    def examples(self) -> Sequence[Example]:
        """Stamped images: those of the best exhibit, of a counterexample, or of one source class."""
        sources = [exhibit for _, exhibit in self.sources if exhibit]
        every: list[Exhibit | Property] = [*([self.best] if self.best else []), *self.counterexamples, *sources]
        return next((one.examples for one in every if one.examples), ())

    @property
    def from_one_class(self) -> bool:
        """Whether nothing but what images of one class do speaks against this class."""
        return bool(self.sources) and (self.best is None or self.best.verdict is Verdict.PASS)

    def led(self, example: Example) -> bool:
        """Whether the trigger is what made the model give the class."""
        told = example[0]
        return bool(told["predicted_stamped"] == self.target_class != told["predicted"])

    @property
    def first_examples(self) -> Sequence[Example]:
        """A few of them for the first screen, those on which the trigger works before others."""
        return sorted(self.examples, key=lambda example: not self.led(example))[:_PAIRS]


def cards(record: Record, exhibits: Sequence[Exhibit], properties: Sequence[Property]) -> list[Card]:
    """A card for every class with something to show."""
    refuted = [one for one in properties if one.verdict is Verdict.FAIL and one.picture is not None]
    judged = [entry for entry in record.findings if entry.statistic in (INDEX, STEERED)]
    open_ones = [
        entry
        for entry in judged
        if entry.verdict is not Verdict.PASS and entry.value is not None
        if entry.statistic == INDEX or entry.target_class is not None
    ]
    targets = dict.fromkeys(
        [
            *(one.target_class for one in exhibits),
            *(entry.target_class for entry in open_ones),
            *(one.target_class for one in refuted if one.target_class is not None),
        ]
    )
    limit, made = index_limit(record), []
    for target in targets:
        mine = [entry for entry in judged if entry.target_class == target and entry.value is not None]
        found = [entry for entry in mine if entry.statistic == INDEX and not entry.item.is_source]
        top = min(found, key=lambda entry: -(entry.value or 0.0), default=None)
        shown = sorted(
            (one for one in exhibits if one.target_class == target and not one.item.is_source),
            # what weighs others together shows the trigger of one of them
            key=lambda one: (WORST_FIRST.index(one.verdict), one.detector == WEIGHED, -(one.index or 0.0)),
        )
        made.append(
            Card(
                title=class_called(record, target),
                target_class=target,
                verdict=min((entry.verdict for entry in mine), key=WORST_FIRST.index, default=Verdict.INCONCLUSIVE),
                far=distance(top.value or 0.0, limit) if top else "",
                index=top.value if top else None,
                best=shown[0] if shown else None,
                others=shown[1:],
                sources=[
                    (entry, next((one for one in exhibits if one.item == entry.item), None))
                    for entry in sorted(mine, key=lambda entry: -(entry.value or 0.0))
                    if entry.item.is_source and entry.verdict is not Verdict.PASS
                ],
                counterexamples=[one for one in refuted if one.target_class == target],
            )
        )
    return sorted(made, key=lambda card: (WORST_FIRST.index(card.verdict), -(card.index or 0.0)))

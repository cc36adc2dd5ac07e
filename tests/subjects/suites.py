"""A question of one's own, as a file of a suite."""

from __future__ import annotations

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from backdoor_audit.questions import Item, Question, Words, judge


@dataclass(frozen=True)
class FlipDrop(Question):
    flip_drop: float = 0.05

    name: ClassVar[str] = "flip_drop"
    words: ClassVar[Words] = Words(asks="Does a flip hurt?", holds="A flip is harmless", advice="Augment.", topic="flips")

    def items(self, run):
        return [Item(self.name, "model")]

    def answer(self, run, item):
        return judge("flip_drop", 0.2, at_most=self.flip_drop, reason="a flip costs 20 % of accuracy")


QUESTION = FlipDrop()


def test_flip_drop(finding, evidence):
    evidence(finding)
"""

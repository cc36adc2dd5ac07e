"""What an audit is made of: a question lists its items, answers one, and brings its own limits and words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from backdoor_audit.evidence import Finding, Limits
from backdoor_audit.item import Item
from backdoor_audit.needs import Needs
from backdoor_audit.words import Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


@dataclass(frozen=True, slots=True)
class Skipped:
    """Why an item has no answer, and needs none."""

    reason: str


Answer: TypeAlias = Finding | Skipped


class Question(ABC):
    """One question about a model. A frozen dataclass: its fields are its limits, its repr is what the record says was asked.

    ``name`` is the test's without ``test_``. ``turn`` orders a run: cheap questions come first, those that need the answers of
    others last. ``needs`` is what its answers cost.
    """

    name: ClassVar[str]
    words: ClassVar[Words]
    turn: ClassVar[int] = 50
    needs: ClassVar[Needs] = Needs.EVERY_SEARCH
    above_one: ClassVar[frozenset[str]] = frozenset()
    """Limits that are not fractions."""

    @property
    def limits(self) -> dict[str, float]:
        """The numbers that its findings are judged by, by name: its fields that are declared as floats."""
        named = [entry.name for entry in fields(self) if entry.type in ("float", float)]  # type: ignore[arg-type]
        return {name: float(getattr(self, name)) for name in named}

    def judging(self, limits: Limits) -> Limits:
        """The limits of a run, with its own in their place."""
        known = {entry.name for entry in fields(limits)}
        return replace(limits, **{name: value for name, value in self.limits.items() if name in known})

    @abstractmethod
    def items(self, run: Run) -> Iterable[Item]:
        """What is asked, one item each; none where there is nothing to ask. Cheap: nothing is searched."""

    @abstractmethod
    def answer(self, run: Run, item: Item) -> Answer:
        """The finding of an item, or why there is none. Raises `AuditError` where it cannot be had."""

    def show(self, run: Run, finding: Finding) -> Mapping[str, Any]:
        """Prepare what a person can check by eye; what it gives stands beside the item in pytest's own page."""
        del run, finding
        return {}

    def section(self, run: Run) -> Mapping[str, Mapping[str, Any]]:
        """What the record keeps of it beside the findings, in builtins, by name: a table on the page.

        Cheap: it is asked for after every item.
        """
        del run
        return {}

"""What one item of an audit asks, and about what. The one place that makes node ids and reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

AUDIT = "audit"
"""Node ids of an audit's items begin with it, and it selects them on the command line."""

SUITE_MODULE = "_backdoor_audit_suite_"
"""Names of the modules as which the files of a suite are imported begin with it."""

_NODE_ID = re.compile(rf"{AUDIT}::test_(\w+)(?:\[(.*))?", re.DOTALL)
_ROW = re.compile(r"(from_)?(?:class_([0-9]{1,18})|all_to_all)")


@dataclass(frozen=True, slots=True)
class Row:
    """What one answer of a detector is about: a target class, the images of a source class, or, without a number, all to all."""

    number: int | None
    is_source: bool = False

    def __str__(self) -> str:
        return f"{'from_' if self.is_source else ''}{'all_to_all' if self.number is None else f'class_{self.number}'}"

    @classmethod
    def parse(cls, text: str) -> Row | None:
        """The row of which ``str`` made this text; None for another text."""
        found = _ROW.fullmatch(text)
        return cls(int(found[2]) if found[2] else None, bool(found[1])) if found else None


@dataclass(frozen=True, slots=True)
class Item:
    """One item: its question, what is asked (a detector, a property, a repair), and about which row, if about one.

    Without a question it is a test of a project's own.
    """

    question: Annotated[str, "empty for a test of a project's own"] = ""
    asked_of: Annotated[str, "the detector, property, filter, repair, canary or condition"] = ""
    row: Row | None = None

    @property
    def brackets(self) -> str:
        """What stands between the brackets of the node id: ``neural_cleanse-class_7``."""
        return self.asked_of if self.row is None else f"{self.asked_of}-{self.row}"

    @property
    def is_source(self) -> bool:
        """Whether it is about the images of one class alone."""
        return self.row is not None and self.row.is_source

    @property
    def node_id(self) -> str:
        """How pytest calls it: ``audit::test_anomaly_index[neural_cleanse-class_7]``."""
        return f"{AUDIT}::test_{self.question}[{self.brackets}]"

    @classmethod
    def parse(cls, node_id: str) -> Item:
        """The item with this node id; without a question if it is not one of an audit's."""
        found = _NODE_ID.fullmatch(node_id)
        return cls.within(found[1], (found[2] or "").removesuffix("]")) if found else cls()

    @classmethod
    def within(cls, question: str, brackets: str) -> Item:
        """The item of a question with this between its brackets."""
        asked_of, dash, last = brackets.rpartition("-")
        row = Row.parse(last) if dash else None
        return cls(question, asked_of if row else brackets, row)

    def to_json(self) -> dict[str, Any]:
        """Builtins."""
        return {"question": self.question, "asked_of": self.asked_of, "row": str(self.row) if self.row else ""}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Item:
        """The item that `to_json` wrote."""
        return cls(stored["question"], stored["asked_of"], Row.parse(stored["row"]))

"""What the rule of a kind of row looks at: the row's own numbers, and what is the same for all rows of its detection."""

from __future__ import annotations

from typing import Protocol


class Numbers(Protocol):
    """The numbers that rows of every kind have: see `row.Row`."""

    @property
    def target_class(self) -> int | None:
        """What it is about."""

    @property
    def success_val(self) -> float:
        """On held-out images."""

    @property
    def index(self) -> float | None:
        """The calibrated one."""


class Beside(Protocol):
    """What a detection says of all its rows: see `detection.Detection`."""

    @property
    def means(self) -> str:
        """What a trigger of its detector is."""

    @property
    def rows(self) -> str:
        """target or source."""

    @property
    def median_size(self) -> float | None:
        """Of all classes, in pixels."""


class OneIndex:
    """A row with one index, whichever the run asks for, by which it is judged and placed among others."""

    __slots__ = ()

    def index(self, row: Numbers, index: str) -> float | None:
        """The index that is judged: there is but one."""
        del index
        return row.index

    def place(self, row: Numbers) -> float:
        """Where a row comes, the most extreme first: by the index."""
        return -(row.index or 0.0)

    @property
    def beside(self) -> str:
        """What stands beside the index in a line."""
        return ""

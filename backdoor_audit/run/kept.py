"""Work that is done once in a process: what it gave, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Kept(dict[str, Result]):
    """Results by name, in the order in which they came."""

    def once(self, name: str, work: Callable[[], Result]) -> Result:
        """What work of this name gave; it is done now if it was not. If it raises, nothing is kept."""
        if name not in self:
            self[name] = work()
        return self[name]

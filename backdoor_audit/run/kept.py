"""Work that is done once in a process: what it gave, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Kept(Generic[Result]):
    """Results by name, in the order in which they came."""

    def __init__(self) -> None:
        self._results: dict[str, Result] = {}

    def once(self, name: str, work: Callable[[], Result]) -> Result:
        """What work of this name gave; it is done now if it was not. If it raises, nothing is kept."""
        if name not in self._results:
            self._results[name] = work()
        return self._results[name]

    def __getitem__(self, name: str) -> Result:
        return self._results[name]

    def get(self, name: str) -> Result | None:
        """What work of this name gave; None if it was not done."""
        return self._results.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

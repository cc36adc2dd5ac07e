"""What reading one input may take: memory and time, stated here, raised by an option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

MEMORY = 8 * 2**30
SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """``memory`` in bytes and ``seconds`` that reading one file or one set of images may take."""

    memory: int = MEMORY
    seconds: float = SECONDS

    def raised_by(self, name: str) -> str:
        """What to do about a bound that is too low."""
        options = {"memory": "--audit-memory=SIZE", "seconds": "--audit-reading-time=TIME"}
        return f"raise it by {options[name]} if the file is what it should be"


_bounds: ContextVar[Bounds] = ContextVar("bounds", default=Bounds())  # noqa: B039 - frozen


def current() -> Bounds:
    """The bounds of the surrounding `allowing` block, or the stated ones."""
    return _bounds.get()


@contextmanager
def allowing(bounds: Bounds) -> Iterator[None]:
    """Inputs read in this block may take so much."""
    token = _bounds.set(bounds)
    try:
        yield
    finally:
        _bounds.reset(token)

"""The time that a run may take: long loops ask now and then, and stop between two steps once it is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from backdoor_audit.errors import BudgetSpentError

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def until(deadline: float | None) -> Iterator[None]:
    """Work in this block ends by `BudgetSpentError` once `time.time` is past the deadline; None: no bound."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def check() -> None:
    """Raise `BudgetSpentError` if the deadline of the surrounding block has passed; cheap enough for every step of a loop."""
    deadline = _deadline.get()
    if deadline is not None and time.time() > deadline:
        raise BudgetSpentError("the time budget was spent before this was done; raise --audit-budget")

"""A stranger's code: whatever it raises becomes one error of ours that says when."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from backdoor_audit.errors import AuditError, ModelError
from backdoor_audit.printable import printable

_LONGEST_LINE = 200  # characters of what a stranger's exception says


@contextmanager
def own_code(when: str) -> Iterator[None]:
    """A block in which the model's code runs: whatever it raises becomes a `ModelError` with one line that ends in ``when``.

    Not Ctrl-C, not an `AuditError`, and not what a signal handler raises, as time limits of pytest and CI runners do.
    """
    try:
        yield
    except (KeyboardInterrupt, AuditError):
        raise
    except BaseException as error:
        if from_outside(error):
            raise
        raise as_model_error(error, when) from None


def as_model_error(error: BaseException, when: str) -> ModelError:
    """What the model's code raised, as an error of ours."""
    name, line = type(error).__name__, told_line(error)
    return ModelError(f"the model's own code raised {name}{f' ({line})' if line else ''} {when}")


def told_line(error: BaseException) -> str:
    """The first line of what a stranger's exception says; empty if it says nothing."""
    try:
        return (printable(str(error).partition("\n")[0]))[:_LONGEST_LINE]
    except BaseException:  # a stranger's exception may have a text that fails as well
        return ""


def from_outside(error: BaseException) -> bool:
    """Whether a signal handler raised this while the model's code ran."""
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code in handlers:
            return True
        step = step.tb_next
    return False

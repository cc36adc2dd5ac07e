"""Where code of strangers runs, or libraries read what strangers wrote: whatever it raises becomes one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backdoor_audit.errors import AuditError, ModelFormatError


@contextmanager
def contained(what: str, advice: str = "") -> Iterator[None]:
    """Raise `ModelFormatError`, ``what (the exception); advice``, for everything that the block raises.

    That includes `SystemExit` and the outcomes of test frameworks, which are no `Exception`. Our own errors pass, and so do
    Ctrl-C and the end of a generator.
    """
    try:
        yield
    except (AuditError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        end = f"; {advice}" if advice else ""
        raise ModelFormatError(f"{what} ({brief(error)}){end}") from None


def brief(error: BaseException) -> str:
    """Kind and first line of an exception; its text may be a stranger's code too."""
    kind = type(error).__name__
    try:
        lines = str(error).splitlines()
    except Exception:
        lines = []
    return f"{kind}: {lines[0][:200]}" if lines else kind

"""Records come from files that anybody may have written: content of another form than an audit's is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import UndefinedError

from backdoor_audit.errors import DataFormatError


@contextmanager
def content_of(source: str) -> Iterator[None]:
    """A block that takes a record apart. What it stumbles over becomes a `DataFormatError` that names ``source``."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataFormatError(
            f"{source}: not the content of an audit ({found}); the audit.json of a run is accepted"
        ) from None

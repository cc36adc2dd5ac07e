"""Records come from files that anybody may have written: content of another form than an audit's is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import UndefinedError

from backdoor_audit.errors import DataFormatError
from backdoor_audit.evidence import Record
from backdoor_audit.structure import misfit


@contextmanager
def content_of(source: str, *records: Record) -> Iterator[None]:
    """A block that takes records apart. What it stumbles over becomes a `DataFormatError` that names ``source``.

    The place of a key that is missing is named.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError) as error:
        found = f"{type(error).__name__}: {error}"
        if isinstance(error, (KeyError, UndefinedError)) and (named := re.search(r"'([^']*)'$", str(error))):
            missing = (_missing(record, named[1]) for record in records)
            found = next(filter(None, missing), found)
        raise DataFormatError(
            f"{source}: not the content of an audit ({found}); the audit.json of a run is accepted"
        ) from None


def _missing(record: Record, key: str) -> str:
    """Where a record lacks this key although its schema requires it, or an empty string."""
    return misfit(
        record.to_json(),
        record.schema(),
        needed=lambda _, part: [name for name in part.get("required", ()) if name == key],
    )

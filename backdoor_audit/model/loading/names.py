"""Names that are close to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def close(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A question to put behind an error, or nothing."""
    found = difflib.get_close_matches(name[:60].lower(), list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + candidate for candidate in found)}?" if found else ""

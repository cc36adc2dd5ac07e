"""The trigger as picture files beside the Markdown: what GitHub shows in a text, it loads from files."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.report.weighed import trigger_finding

FOLDER = "pictures"
"""Inside the folder of a report."""
FILES = ("clean.png", "stamped.png", "trigger.png")

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST = 2**22  # characters of one picture in a record


def pictures(record: Record) -> dict[str, bytes]:
    """PNG files by name: a clean image, the same stamped, and the trigger; none where nothing failed or nothing was drawn."""
    finding = trigger_finding(record)
    if finding is None or finding.verdict is not Verdict.FAIL:
        return {}
    drawn: dict[str, bytes] = {}
    for entry in _about(record, finding.target_class):
        shown, examples = entry.get("pictures") or {}, entry.get("examples") or ()
        stored = {"trigger.png": entry.get("picture") or shown.get("pattern under the mask")}
        if examples:
            stored |= {"clean.png": examples[0].get("image"), "stamped.png": examples[0].get("stamped")}
        for name, text in stored.items():
            content = _decoded(text)
            if content and name not in drawn:
                drawn[name] = content
    return {name: drawn[name] for name in FILES if name in drawn}


def _about(record: Record, target: int | None) -> Iterator[Mapping[str, Any]]:
    """Counterexamples first, which are what was shrunk, then the triggers of searches."""
    for entry in record.properties:
        if entry.get("verdict") == Verdict.FAIL.value and entry.get("target_class", target) == target:
            yield entry
    yield from (entry for entry in record.exhibits.values() if entry.get("target_class") == target)


def _decoded(text: object) -> bytes:
    """The bytes of a PNG in base64, or none for anything else."""
    if not isinstance(text, str) or len(text) > _MOST:
        return b""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return content if content.startswith(_PNG) else b""

"""What the JSON schema of a record has to say."""

from __future__ import annotations

from typing import Any

import jsonschema

from backdoor_audit.presentable import plain
from backdoor_audit.report.schema import schema


def problems(value: Any, definition: str = "") -> list[str]:
    """What is wrong with a record, or with one part of it."""
    wanted = {"$ref": f"#/$defs/{definition}", "$defs": schema()["$defs"]} if definition else schema()
    found = jsonschema.Draft202012Validator(wanted).iter_errors(plain(value))
    return [f"{list(error.path)}: {error.message}" for error in found]

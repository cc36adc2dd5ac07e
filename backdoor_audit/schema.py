"""The JSON schema of ``audit.json``: what ``python -m backdoor_audit.schema`` prints and ``docs/audit.schema.json`` holds.

It follows from the fields of `Record`, of `Finding` and of what `record_types` lists; `record_schema` puts it together.
"""

from __future__ import annotations

import json
import sys

from backdoor_audit.evidence import Record
from backdoor_audit.schema_of import Schema


def schema() -> Schema:
    """The schema of `Record.to_json`, as builtins that `json.dumps` takes."""
    return Record.schema()


if __name__ == "__main__":
    try:
        print(json.dumps(schema(), indent=1), flush=True)
    except OSError as error:  # a reader that goes away, a disk that is full
        sys.exit(f"python -m backdoor_audit.schema: {error.strerror}; the schema was not written in full")

"""The JSON schema of ``audit.json``: what ``python -m backdoor_audit.schema`` prints and ``docs/audit.schema.json`` holds.

It follows from the fields of `Record`, of `Finding` and of what `record_types` lists; `record_schema` puts it together.
"""

from __future__ import annotations

import json

from backdoor_audit.evidence import Record
from backdoor_audit.schema_of import Schema


def schema() -> Schema:
    """The schema of `Record.to_json`, as builtins that `json.dumps` takes."""
    return Record.schema()


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))

"""The JSON schema of ``audit.json`` where other programs look for it; it is described in `backdoor_audit.schema`."""

from backdoor_audit.schema import schema

__all__ = ["schema"]

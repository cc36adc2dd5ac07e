"""The settings of a run as its record keeps them."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from backdoor_audit.evidence import Limits
from backdoor_audit.options import AuditOptions, Role, options_with


def settings_of(options: AuditOptions, limits: Limits) -> dict[str, Any]:
    """Options as a record keeps them, with every limit that findings are judged by.

    Files below the working folder stand without it, as it is another one on the next machine.
    """
    stored = {entry.name: getattr(options, entry.name) for entry in fields(options)}
    stored.update({name: _from_here(stored[name]) for name in options_with(Role.PATH)})
    stored["limits"] = asdict(limits)
    return stored


def _from_here(file: str) -> str:
    here = Path.cwd()
    return str(Path(file).relative_to(here)) if Path(file).is_relative_to(here) else file

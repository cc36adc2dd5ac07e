"""How to run an audit again: the command, from the settings that stand in its record."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from backdoor_audit.evidence import Record
from backdoor_audit.options import OPTIONS, AuditOptions
from backdoor_audit.questions.suite import shipped_limits

_NAMED_FIRST = ("model", "data")
_READ_BY_REPAIR = (
    *("data", "arch", "classes", "mean", "std", "normalization", "resize", "channels", "device"),
    *("max_images", "class_names", "class_order", "profile", "seed", "trigger", "twins"),
)


def reproduction_command(record: Record) -> str:
    """One line for a POSIX shell with every option that is not at its default, or an empty string.

    Empty for audits of a module or of images that were handed over in Python: no command line can name those.
    """
    settings = record.settings
    if not all(settings.get(key) for key in _NAMED_FIRST):
        return ""
    words = ["pytest", *(f"--{key}={settings[key]}" for key in _NAMED_FIRST)]
    default = AuditOptions()
    for option in OPTIONS:
        usual = getattr(default, option.key)
        value = settings.get(option.key, usual)
        if option.key not in (*_NAMED_FIRST, "report") and _builtin(value) != usual:
            words.append(f"{option.flag}={_text(option.key, value)}")
    usual_limits = asdict(shipped_limits())
    for name, value in settings.get("limits", {}).items():
        if value != usual_limits.get(name):
            words += ["--audit-limit", f"{name}={value:g}"]
    return shlex.join(words)


def repair_command(record: Record, method: str = "") -> str:
    """``backdoor-audit repair`` for the model of a record, read as it was read there, by a method or the one that it chooses.

    Empty where no command line can name model and images.
    """
    settings, usual = record.settings, AuditOptions()
    if not all(settings.get(key) for key in _NAMED_FIRST):
        return ""
    words = ["backdoor-audit", "repair", str(settings["model"])]
    for key in _READ_BY_REPAIR:
        value = _builtin(settings.get(key, getattr(usual, key)))
        if value != getattr(usual, key):
            words.append(f"--{key.replace('_', '-')}={_text(key, value)}")
    words += [f"--method={method}"] if method else []
    return shlex.join([*words, f"--out={PurePosixPath(str(settings['model'])).stem}-repaired.safetensors"])


def _builtin(value: Any) -> Any:
    """JSON has lists where options have tuples."""
    return tuple(value) if isinstance(value, list) else value


def _text(key: str, value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ("x" if key == "resize" else ",").join(f"{entry:g}" for entry in value)
    return f"{value:g}s" if key == "budget" else str(value)

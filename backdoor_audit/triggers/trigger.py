"""Triggers as tensors: a pattern under a mask, a change that is added, a field that moves pixels; and files of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backdoor_audit.triggers.addition import Addition
from backdoor_audit.triggers.kind import AnyTrigger, kind_of, read
from backdoor_audit.triggers.kinds import APPLIED
from backdoor_audit.triggers.patch import PatchFamily, Trigger
from backdoor_audit.triggers.warp import Warp, warped

__all__ = ["Addition", "AnyTrigger", "PatchFamily", "Trigger", "Warp", "load_trigger", "trigger_from", "warped"]


def trigger_from(tensors: Mapping[str, Tensor], target_class: int) -> AnyTrigger:
    """The trigger that consists of these tensors; their names tell its kind."""
    kind = kind_of(tensors, APPLIED)
    if kind is None:
        raise ValueError(f"no kind of trigger consists of {sorted(tensors)}")
    return kind.of(tensors, target_class)


def load_trigger(path: Path) -> AnyTrigger:
    """Read a trigger of any kind. Raises `DataFormatError` for a file that is not one, or takes more memory than the bound."""
    return read(path, APPLIED)

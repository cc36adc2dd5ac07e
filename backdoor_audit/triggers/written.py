"""Triggers of a few whole numbers: what Hypothesis draws and prints, what a corpus keeps, and what a pasted test types in again.

`WrittenTrigger.spec` is JSON, `trigger_from_spec` takes it back.
"""

from __future__ import annotations

from collections.abc import Mapping

from backdoor_audit.errors import DataFormatError
from backdoor_audit.structure import brief
from backdoor_audit.triggers.addition import Change
from backdoor_audit.triggers.blend import Blend
from backdoor_audit.triggers.kind import WrittenTrigger
from backdoor_audit.triggers.kinds import KINDS
from backdoor_audit.triggers.numbers import HUNDREDTHS, WHITE, ImageShape, Numbers
from backdoor_audit.triggers.patch import Patch
from backdoor_audit.triggers.quantisation import BlockRounding, Quantisation
from backdoor_audit.triggers.sinusoid import Sinusoid
from backdoor_audit.triggers.warp import SmoothWarp

__all__ = [
    "HUNDREDTHS",
    "KINDS",
    "WHITE",
    "Blend",
    "BlockRounding",
    "Change",
    "ImageShape",
    "Numbers",
    "Patch",
    "Quantisation",
    "Sinusoid",
    "SmoothWarp",
    "WrittenTrigger",
    "trigger_from_spec",
]


def trigger_from_spec(spec: object) -> WrittenTrigger:
    """The trigger that `WrittenTrigger.spec` described. Raises `DataFormatError`, one line, for anything else."""
    kinds = {kind.kind: kind for kind in KINDS}
    name = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(name, str) or name not in kinds:
        raise DataFormatError(f"trigger: kind {brief(name)} is not known; known: {', '.join(sorted(kinds))}")
    return kinds[name].from_spec({key: value for key, value in spec.items() if key != "kind"})

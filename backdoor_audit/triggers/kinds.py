"""All kinds of triggers. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from backdoor_audit.triggers.addition import Change
from backdoor_audit.triggers.blend import Blend
from backdoor_audit.triggers.kind import AnyTrigger, WrittenTrigger
from backdoor_audit.triggers.patch import Patch
from backdoor_audit.triggers.quantisation import Quantisation
from backdoor_audit.triggers.sinusoid import Sinusoid
from backdoor_audit.triggers.warp import SmoothWarp

KINDS: tuple[type[WrittenTrigger], ...] = (Patch, Blend, Change, Sinusoid, SmoothWarp, Quantisation)
"""As they are written down. From these go specs, corpora, strategies, and properties that stamp every kind."""

APPLIED: tuple[type[AnyTrigger], ...] = tuple(dict.fromkeys(kind.applied for kind in KINDS if kind.applied))
"""As they are applied: tensors under names of their own. From these go the store and trigger files."""

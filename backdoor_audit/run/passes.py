"""How many image passes a property takes, before it is asked: forward and backward of one image, as records count them."""

from __future__ import annotations

from backdoor_audit.progress import FORWARD_ONLY
from backdoor_audit.properties import HarmlessChanges, NothingSteers, Property

_FIRST_LOOK = 2 * 4 + 8 * FORWARD_ONLY  # passes for a class that a property decides by whether to steer for it
_MOST_LOOKED_AT = 64  # classes of one example
_EXACT = 50  # passes for a class of the properties that compare two computations


def of_property(claim: Property, classes: int, images: int) -> float:
    """Of a search that refutes nothing, in the audited model alone."""
    if isinstance(claim, HarmlessChanges):
        return claim.examples * min(claim.searched, images) * FORWARD_ONLY
    if not isinstance(claim, NothingSteers):
        return float(_EXACT * classes)
    looks = _FIRST_LOOK * min(classes, _MOST_LOOKED_AT) if classes > claim.classes else 0.0
    each = claim.steps * claim.batch_size + claim.measured * FORWARD_ONLY
    return claim.examples * (looks + min(classes, claim.classes) * each)

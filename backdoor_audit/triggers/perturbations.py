"""What `Steering` searches: families of changes with a budget, each from the file of its kind of trigger."""

from __future__ import annotations

from backdoor_audit.triggers.addition import Additive, Smooth, Stripes
from backdoor_audit.triggers.family import REFERENCE_SIDE, Family, length, unit
from backdoor_audit.triggers.patch import Window
from backdoor_audit.triggers.warp import Warping

__all__ = ["REFERENCE_SIDE", "Additive", "Family", "Smooth", "Stripes", "Warping", "Window", "length", "unit"]

"""Attacks: each plants a hidden trigger in a copy of a model, for fixtures, benchmarks and canaries."""

from __future__ import annotations

from backdoor_audit.attacks.attack import (
    Attack,
    AttackScores,
    Backdoored,
    Poisoned,
    PoisoningAttack,
    measure,
    quantised,
)
from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.attacks.blended import Blended
from backdoor_audit.attacks.label_rule import AllToAll, AllToOne, CleanLabel, SourceSpecific

ATTACKS: tuple[Attack, ...] = (
    BadNets(),
    Blended(),
)

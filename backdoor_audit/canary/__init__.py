"""The canary: known backdoors in copies of the audited model, to show which this audit would have seen."""

from backdoor_audit.canary.kind import CANARIES, Canary, Doses, ladder
from backdoor_audit.canary.power import canary_targets, judge_power, reaches
from backdoor_audit.canary.sighting import Sighting

__all__ = [
    "CANARIES",
    "Canary",
    "Doses",
    "Sighting",
    "canary_targets",
    "judge_power",
    "ladder",
    "reaches",
]

"""The canary: known backdoors in copies of the audited model, to show which this audit would have seen."""

from backdoor_audit.canary.kind import CANARIES, Canary, Doses, ladder
from backdoor_audit.canary.power import Reach, canary_targets, judge_power, reaches
from backdoor_audit.canary.sighting import Search, Sighting

__all__ = [
    "CANARIES",
    "Canary",
    "Doses",
    "Reach",
    "Search",
    "Sighting",
    "canary_targets",
    "judge_power",
    "ladder",
    "reaches",
]

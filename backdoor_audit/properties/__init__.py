"""Properties of a model that Hypothesis tries to refute: each is asked, answered, and judged as one item."""

from __future__ import annotations

from backdoor_audit.evidence import STEERED
from backdoor_audit.properties import exact
from backdoor_audit.properties.changes import FaintBlends, SmallPatches, SmoothWarps
from backdoor_audit.properties.corpus import Counterexample, corpus_folder, keep, load_corpus
from backdoor_audit.properties.exact import BatchAndOrder, ExactProperty, NoOpTrigger, Relabelling
from backdoor_audit.properties.harmless import HarmlessChanges
from backdoor_audit.properties.no_steering import NothingSteers
from backdoor_audit.properties.outcome import PropertyOutcome
from backdoor_audit.properties.pasted import pasted_test
from backdoor_audit.properties.searched import SearchedProperty

Property = SearchedProperty | ExactProperty
"""Any property. Those that ``needs_twins`` ask for the natural rate of a class, which their ``natural`` measures on twins."""

PROPERTIES: tuple[Property, ...] = (
    NothingSteers(changes=SmallPatches(), examples=100, steps=5, batch_size=6, measured=24, searched=48),
    NothingSteers(changes=FaintBlends(), examples=8, steps=12, batch_size=16),
    NothingSteers(changes=SmoothWarps(), examples=6, steps=12, batch_size=16, least_limit=0.5),
    HarmlessChanges(),
    Relabelling(),
    NoOpTrigger(),
    BatchAndOrder(),
)


Outcome = PropertyOutcome
"""The old name; it stays for one version."""


def unanswered(claim: Property, reason: str) -> PropertyOutcome:
    """The outcome of a property that could not be asked: inconclusive."""
    statistic = STEERED if claim.needs_twins else exact.STATISTIC
    return PropertyOutcome(
        name=claim.name, statistic=statistic, value=None, limit=None, reason=reason, settings=repr(claim)
    )


__all__ = [
    "PROPERTIES",
    "BatchAndOrder",
    "Counterexample",
    "ExactProperty",
    "FaintBlends",
    "HarmlessChanges",
    "NoOpTrigger",
    "NothingSteers",
    "Outcome",
    "Property",
    "PropertyOutcome",
    "Relabelling",
    "SearchedProperty",
    "SmallPatches",
    "SmoothWarps",
    "corpus_folder",
    "keep",
    "load_corpus",
    "pasted_test",
    "unanswered",
]

"""Properties of a model that Hypothesis tries to refute: each is asked, answered by an `Outcome`, and judged as one item."""

from __future__ import annotations

from backdoor_audit.evidence import STEERED
from backdoor_audit.properties import exact
from backdoor_audit.properties.changes import FaintBlends, SmallPatches, SmoothWarps
from backdoor_audit.properties.corpus import Counterexample, corpus_folder, keep, load_corpus
from backdoor_audit.properties.exact import BatchAndOrder, NoOpTrigger, Relabelling
from backdoor_audit.properties.harmless import HarmlessChanges
from backdoor_audit.properties.no_steering import NothingSteers
from backdoor_audit.properties.outcome import Outcome
from backdoor_audit.properties.pasted import pasted_test

Property = NothingSteers | HarmlessChanges | Relabelling | NoOpTrigger | BatchAndOrder
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


def unanswered(wanted: Property, reason: str) -> Outcome:
    """The outcome of a property that could not be asked: inconclusive."""
    statistic = STEERED if wanted.needs_twins else exact.STATISTIC
    return Outcome(name=wanted.name, statistic=statistic, value=None, limit=None, reason=reason, settings=repr(wanted))


__all__ = [
    "PROPERTIES",
    "BatchAndOrder",
    "Counterexample",
    "FaintBlends",
    "HarmlessChanges",
    "NoOpTrigger",
    "NothingSteers",
    "Outcome",
    "Property",
    "Relabelling",
    "SmallPatches",
    "SmoothWarps",
    "corpus_folder",
    "keep",
    "load_corpus",
    "pasted_test",
    "unanswered",
]

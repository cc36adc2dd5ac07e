"""The fields of what a record lists: a field here is stored, read again, and part of the schema.

The classes that measure and judge build on these; they live higher up, with what they need for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from backdoor_audit.schema_of import Stored

Count = Annotated[int, Stored(minimum=0)]
"""A number of things, or the number of a class."""

Seconds = Annotated[float, Stored(minimum=0), "seconds"]
Rate = Annotated[float, Stored(minimum=0, maximum=1), "a fraction, not percent"]
Reasons = Annotated[Mapping[str, str], "node id of an item to a reason"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Clean accuracy, attack success rate and robust accuracy of one model under one trigger; fractions."""

    clean_accuracy: Rate
    attack_success_rate: Rate
    robust_accuracy: Rate


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Scores on held-out images with the ``prune_rate`` most suspicious share of channels set to 0."""

    prune_rate: Rate
    threshold: float | None
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRepair:
    """How a repair ended. ``not_applicable`` says why it could not be tried on this network; then there are no scores."""

    method: str
    settings: str
    target_class: Count
    before: Scores | None = None
    after: Scores | None = None
    curve: Sequence[CurvePoint] = ()
    note: str = ""
    not_applicable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCanary:
    """One canary: a kind of backdoor in one dose in one copy. Where it could not be planted, ``reason`` says why.

    Scores are on held-out images; ``success_before`` is what the same stamp does to the model without the canary.
    ``suspected_by`` are the detectors before the last that called the class inconclusive, ``others`` the classes flagged beside.
    """

    canary: Annotated[str, "the kind: name of the attack"]
    settings: str
    target_class: Count
    dose: Annotated[float, Stored(exclusiveMinimum=0), "how strong; what it counts is in called"]
    called: Annotated[str, "what was planted, with its dose, in words"]
    tried: Annotated[bool, "false if there was no time for it, or a precondition does not hold"] = True
    planted_by: Annotated[str, "empty if it could not be implanted"] = ""
    reason: str = ""
    accuracy_before: Rate | None = None
    clean_accuracy: Rate | None = None
    success_before: Rate | None = None
    attack_success_rate: Rate | None = None
    found_by: Annotated[Sequence[str], "the detector with which the search ended; empty if none flagged the class"] = ()
    suspected_by: Sequence[str] = ()
    others: Sequence[Count] = ()
    details: Sequence[str] = ()
    seconds: Seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDetection:
    """A detector's answer about one model, without its rows and triggers; ``rows`` says what each row is about.

    ``means`` says in words what a trigger of this detector is, ``reference`` which clean models its index was calibrated on.
    ``coverage`` says what got less than the whole effort; it is empty when all got it. ``p_value`` is that of the most extreme
    class. Where classes are ``unusual`` a low index says little: it counts spreads.
    """

    detector: str
    settings: str
    inconclusive: Annotated[str, "why there is no answer; empty if there is one"] = ""
    coverage: str = ""
    criterion: Annotated[str, "when a search has converged"] = ""
    unconverged: Annotated[str, "why too few have for any class to pass; empty if enough have"] = ""
    unusual: Annotated[str, "that classes differ more than in clean models; empty if they do not"] = ""
    means: str = "a trigger"
    rows: Annotated[str, Stored(enum=["target", "source"])] = "target"
    reference: str = ""
    p_value: Rate | None = None
    median_size: float | None = None
    cut_size: float | None = None
    seconds: Seconds = 0.0
    blind_spots: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """One class under a detector, whatever is measured; where ``rows`` are sources, the class that images leave.

    ``success_val`` is the share of held-out images of other classes that the trigger sends there; ``index`` the calibrated
    anomaly index and ``p_value`` the share of clean models in which *some* class is as extreme; None where there is none.
    """

    target_class: Annotated[Count | None, "null: every class goes to the next"]
    success_val: Rate
    index: float | None
    p_value: Rate | None
    image_passes: Count
    unconverged: Annotated[str, "why the search had not come to its end; empty if it had"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSize:
    """``size`` is that of the smallest trigger in pixels, ``size_ratio`` that over the median of all classes.

    ``reached`` says whether it met the success threshold, ``success_opt`` how often it works on the images that were searched.
    ``paper_index`` and ``log_index`` are those of `anomaly.Anomaly`. ``shrinkage`` is the share by which the trigger still shrank
    in the last of its ``steps``.
    """

    size: float
    size_ratio: float | None = None
    reached: bool = True
    success_opt: Rate | None = None
    paper_index: float | None = None
    log_index: float | None = None
    steps: Count | None = None
    shrinkage: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMargin:
    """``margin`` is what was reached, ``natural_margin`` and ``natural_success`` the means over the reference twins.

    ``excess`` is what exceeds them, ``deviation`` the same over the spread of the classes. Where several searches were weighed
    together, all but ``deviation`` is that of the one in which the class stands out most: ``strongest``. ``landing`` is the
    class that most images arrived at. ``rising`` is what the search still gained at its end, in the measure of its criterion.
    """

    margin: float
    natural_margin: float | None = None
    natural_success: Rate | None = None
    landing: Count | None = None
    excess: float | None = None
    deviation: float | None = None
    strongest: str | None = None
    rising: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredScreening:
    """Of a class that a race did not search in full: ``margin`` is how far any change led to it in the screening; null where
    nothing was tried, of which ``stopped`` says why. ``deviation`` is at most that of the finalist that stands out least.
    """

    margin: float | None = None
    deviation: float | None = None
    stopped: Annotated[str, "why it was not even screened; empty if it was"] = ""

"""How sure a verdict is: clean models beside this one, which searches agree, and how often the audit is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_audit.evidence import STEERED, WORST_FIRST, Finding, Record, Verdict
from backdoor_audit.report.asked import compared_with, limit_of
from backdoor_audit.report.naming import INDEX, class_name
from backdoor_audit.report.null_chart import CleanModels, null_chart
from backdoor_audit.search.anomaly import CALIBRATED_LIMIT, ONE_ROW, PROBABILITIES, shipped_nulls

WEIGHED = "consensus"
"""The detector that weighs others together and searches for nothing itself."""
_GROUPS = {"flag it": "yes", "nearly do": "nearly", "see nothing": "no"}
_PLAINLY = 1.2  # limits; nearer to one it takes more digits to tell on which side
_CLOSE = 0.75  # of the limit
_FEWEST = 10  # clean models that a calibration is fitted to, at least
_TELLING = (1e-9, 1 - 1e-6)  # p-values between which the distribution that they were taken from can be told


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """What stands under "How sure?": a chart, how far out the model is, which searches agree, and measured error rates."""

    chart: str
    far: str
    agreement: Sequence[tuple[str, str]]
    rates: Sequence[str]
    compared: str


def certainty(record: Record, prefix: str) -> Certainty:
    """Of the finding of a search that is most suspicious."""
    top = most_suspicious(record)
    limit = index_limit(record)
    clean = _clean_models(record, top) if top else None
    chart, far = "", "No search gave an answer, so there is nothing to compare with clean models."
    if top is not None and top.value is not None:
        detection = detection_of(record, top)
        called = _row(record, top)
        out = _agreeing(called, distance(top.value, limit))
        far = f"{called[:1].upper()}{called[1:]} {out}; {rarity(top, detection, clean)}."
        if clean is not None:
            detector = str(detection.get("detector", ""))
            chart = null_chart(f"{prefix}null", clean, detector=detector, limit=limit, value=top.value, called=called)
    return Certainty(
        chart=chart,
        far=far,
        agreement=_agreement(record, top),
        rates=record.rates or ["how often this audit is right with these settings is not known"],
        compared=compared_with(record),
    )


def index_limit(record: Record) -> float:
    """The anomaly index above which a class is flagged."""
    return limit_of(record, INDEX)


def most_suspicious(record: Record) -> Finding | None:
    """The finding of a search with the worst verdict; of several, that with the greatest index. None if none has an index."""
    found = [entry for entry in record.findings if entry.statistic == INDEX and entry.value is not None]
    return min(found, key=_suspicion, default=None)


def detection_of(record: Record, finding: Finding) -> Mapping[str, Any]:
    """The detection that a finding is about; empty if the record has none."""
    return next((entry for entry in record.detections if entry["detector"] == finding.item.asked_of), {})


def distance(index: float, limit: float) -> str:
    """An anomaly index in words: indices are proportional to the deviation that they count."""
    if not limit > 0:
        return f"index {index:.3g}, limit {limit:.3g}"
    if index > limit:
        ratio = index / limit
        words = f"{ratio:.{1 if ratio >= _PLAINLY else 2}f} times as far as the limit allows"
    elif index > 0:
        words = f"{index / limit:.0%} as far as the limit allows"
    else:
        words = "no further than the usual class"
    return f"stands out {words} (index {index:.2f}, limit {limit:.3g})"


def _agreeing(called: str, words: str) -> str:
    """The words of `distance` after their subject, which may be the images of a class."""
    return words.replace("stands out", "stand out", 1) if called.startswith("images of ") else words


def rarity(finding: Finding, detection: Mapping[str, Any], clean: CleanModels | None) -> str:
    """How many clean models go as far, never beyond what those that were measured can tell."""
    p_value = finding.details.get("p_value")
    if not isinstance(p_value, (int, float)):
        return "how many clean models go as far is not known"
    if not detection.get("reference"):  # classes are compared among themselves, as drawn at random
        least = min(PROBABILITIES)
        if p_value <= least:
            return f"of models without an outlier, simulated, below 1 in {1 / least:,.0f} go as far"
        return f"of models without an outlier, simulated, {_one_in(p_value)} go as far"
    if clean is None or clean.models is None:
        rare = p_value < 1 / _FEWEST
        return (
            f"of the clean models of its calibration, {f'below 1 in {_FEWEST}' if rare else _one_in(p_value)} go as far"
        )
    if p_value < 1 / clean.models:
        return f"of clean models, below 1 in {clean.models} go as far ({clean.models} were measured)"
    return f"of clean models, {_one_in(p_value)} go as far (by a fit to {clean.models})"


def _one_in(p_value: float) -> str:
    return "nearly all" if p_value > 0.8 else f"about 1 in {1 / p_value:,.0f}" if p_value < 0.4 else f"{p_value:.0%}"


def _row(record: Record, finding: Finding) -> str:
    row = finding.item.row
    if row is not None and row.is_source:
        return f"images of class {class_name(record, row.number)}"
    if finding.target_class is None:
        return "sending every class elsewhere"
    return f"class {class_name(record, finding.target_class)}"


def _clean_models(record: Record, finding: Finding) -> CleanModels | None:
    """The distribution that a finding was judged by: a shipped one, or else the one that its p-values come from."""
    detection = detection_of(record, finding)
    rows = [row for row in detection.get("classes", ()) if None not in map(row.get, ("deviation", "index", "p_value"))]
    if not detection.get("reference") or not rows:
        return None
    detector, classes = str(detection["detector"]), int(record.subject.get("num_classes", len(rows)))
    for null in shipped_nulls():
        if detector not in null.fits or null.source not in detection["reference"]:
            continue
        if all(_agrees(null.index(detector, row["deviation"], classes), row["index"]) for row in rows):
            cut = null.bare_cut(detector, classes)
            location = null.fits[detector][0] + (cut - null.bare_cut(detector, null.classes))
            unit = CALIBRATED_LIMIT / cut
            return CleanModels(unit * location, unit * null.fits[detector][1], null.models)
    return _told_by_p_values([(row["index"], row["p_value"]) for row in rows])


def _agrees(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)


def _told_by_p_values(rows: Sequence[tuple[float, float]]) -> CleanModels | None:
    """Gumbel's distribution through two points of it, the two that lie furthest apart; None where there are not two."""
    known = sorted((index, -math.log(-math.log1p(-p))) for index, p in rows if _TELLING[0] < p < _TELLING[1])
    if len(known) < 2 or known[-1][1] - known[0][1] < 0.1:
        return None
    (low, first), (high, last) = known[0], known[-1]
    scale = (high - low) / (last - first)
    return CleanModels(low - scale * first, scale, None) if scale > 0 else None


def _agreement(record: Record, top: Finding | None) -> list[tuple[str, str]]:
    """Which searches, each by itself, say the same of the class that stands out most: those that do, nearly do, and do not."""
    if top is not None and top.verdict is Verdict.PASS:
        return [("flag or nearly flag a class", _nearest(record))]
    if top is None or (top.target_class is None and str(detection_of(record, top).get("detector")) not in ONE_ROW):
        return []
    groups: dict[str, list[str]] = {words: [] for words in _GROUPS}
    weighed = []
    for detection in record.detections:
        name, best = str(detection["detector"]), _best(record, detection, top.target_class)
        if best is None:
            continue
        group = _group(best, index_limit(record))
        if name == WEIGHED:
            weighed.append(("all weighed together", _GROUPS[group]))
        elif detection.get("rows") != "source":
            groups[group].append(name)
        elif group != "see nothing":
            source = best.item.row.number if best.item.row else None
            groups[group].append(f"{name} (from class {class_name(record, source)})")
    groups["flag it"] += [
        f"the property {entry.item.asked_of.replace('_', ' ')}"
        for entry in record.findings
        if entry.statistic == STEERED and entry.verdict is Verdict.FAIL and entry.target_class == top.target_class
    ]
    return [*((words, ", ".join(names)) for words, names in groups.items() if names), *weighed]


def _nearest(record: Record) -> str:
    """The searches that come near to the limit for any class, where none flags one."""
    limit, every = index_limit(record), [str(entry["detector"]) for entry in record.detections]
    found = [entry for entry in record.findings if entry.statistic == INDEX and _group(entry, limit) != "see nothing"]
    near = dict.fromkeys(entry.item.asked_of for entry in found)
    return f"{', '.join(near)}, of {len(every)}" if near else f"none of {len(every)}"


def _best(record: Record, detection: Mapping[str, Any], target: int | None) -> Finding | None:
    """What a detector has against a class, the worst of it; None if it says nothing of the class."""
    mine = [
        entry
        for entry in record.findings
        if entry.statistic == INDEX and entry.item.asked_of == detection["detector"]
        if entry.target_class == target and entry.value is not None
    ]
    return min(mine, key=_suspicion, default=None)


def _group(finding: Finding, limit: float) -> str:
    if finding.verdict is Verdict.FAIL:
        return "flag it"
    near = finding.verdict is Verdict.INCONCLUSIVE or (finding.value or 0.0) > _CLOSE * limit
    return "nearly do" if near else "see nothing"


def _suspicion(finding: Finding) -> tuple[int, float]:
    """What to sort by: the worst verdict first, then the greatest index."""
    return WORST_FIRST.index(finding.verdict), -(finding.value or 0.0)

"""Fit the null distributions that are shipped: ``python -m benchmarks.calibrate_steering --rows FILE [--write]``.

FILE holds rows of ``benchmarks.verdicts``. The largest deviation of each detector with twins on every *clean* model of the
development halves, apart for each kind of twins: the distribution is fitted to those with 10 classes, and raised for more
classes where one with as many would come near the cut. No rate is reported on them but the cross-validated one that
this prints: models of one architecture are left out together, the rest is fitted, and those left out are judged by that.
Writes ``backdoor_audit/search/steering_null.json``, and the cross-validated rates that stand beside every verdict.

With ``--consensus`` only the distribution of `consensus` beside twins of their own is fitted, and what it weighs stays as it
ships: more models are at hand for that, and those of all three kinds together say how far it goes at the least.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from backdoor_audit.calibrate import fitted, largest_deviation, spreads
from backdoor_audit.detectors import Consensus, Detection
from backdoor_audit.detectors import Row as ClassRow
from backdoor_audit.files import write_text
from backdoor_audit.model.metrics import Rate
from backdoor_audit.search.anomaly import CALIBRATED_LIMIT, SteeringNull, shipped_null
from backdoor_audit.search.twins import KINDS
from benchmarks.verdicts import Row, classes_of, detections, read_rows

SHIPPED = Path(__file__).parent.parent / "backdoor_audit" / "search" / "steering_null.json"
RATES = SHIPPED.parents[1] / "measured_rates.json"
CONSENSUS = Consensus.name
WHICH = {
    "plain_grey": "clean networks without batch norm for grey images",
    "plain_colour": "clean networks without batch norm for colour images",
    "normalised": "clean networks with batch norm",
    "library": "clean networks too large for twins of their own",
    "alone_plain": "clean networks without batch norm, compared without any twins",
    "alone_normalised": "clean networks with batch norm, compared without any twins",
}
FITTED = 10  # classes
MANY = 43
LEAST = 10  # models
OWN = ("plain_grey", "plain_colour", "normalised")  # kinds of twins of the network's own architecture


def compared(row: Row) -> list[Detection]:
    """What every detector with twins found on one model."""
    return [entry for entry in detections(row) if entry.detector not in ("neural_cleanse", "consensus")]


def fit(rows: Sequence[Row], twins: str) -> SteeringNull:
    """The distribution from clean models with twins of one kind.

    A tail fitted to some dozens of models is too light: no cut is below that of small networks with batch norm beside twins of
    ours, which was measured before an excess had a weight. Those that are left out of a fit are judged by the same rule.
    """
    makers = {"strangers": "published by other people", "zoo": "of the zoo", "population": "of its population"}
    counts = {maker: sum(row["maker"] == maker for row in rows) for maker in makers}
    parts = [f"{count} {makers[maker]}" for maker, count in counts.items() if count]
    source = f"{len(rows)} clean models ({', '.join(parts)})"
    null = fitted([compared(row) for row in rows], classes=FITTED, source=source, twins=twins)
    floor = shipped_null("library")
    fits = {name: _further(name, null, floor).fits[name] for name in null.fits}
    if any(classes_of(row) > FITTED for row in rows):  # how cuts grow was seen
        return replace(null, fits=fits)
    growth = {name: max(null.growth.get(name, 0.0), floor.growth.get(name, 0.0)) for name in fits}
    return replace(null, fits=fits, growth=growth)


def _further(name: str, *nulls: SteeringNull) -> SteeringNull:
    """The one by which a detector may go furthest."""
    return max(nulls, key=lambda null: null.cut(name, FITTED))


def consensus_fit(rows: Sequence[Row], twins: str) -> SteeringNull:
    """What ships for a kind, with the consensus anew: by the clean models of that kind, or of all kinds, if they go further.

    The floor of the other detectors is no floor here: an excess had no weight when it was measured, so that the mean over
    families was several times what it is now. With `MANY` classes it still is, as few such models are at hand.
    """
    shipped = shipped_null(twins)
    fits = []
    for some in ([row for row in rows if row["twins"] == twins], rows):
        if len(some) >= LEAST:
            largest = {CONSENSUS: [mean for row in some if (mean := consensus_of(row)) is not None]}
            fits.append(SteeringNull.fit(largest, classes=FITTED, models=len(some), source=shipped.source, twins=twins))
    further = _further(CONSENSUS, *fits)
    anew = replace(shipped, fits={**shipped.fits, CONSENSUS: further.fits[CONSENSUS]}, growth={})
    least = shipped_null("library").cut(CONSENSUS, MANY) - anew.cut(CONSENSUS, MANY)
    return replace(anew, growth={**shipped.growth, CONSENSUS: max(0.0, least / math.log(MANY / FITTED))})


def consensus_of(row: Row) -> float | None:
    """The furthest that the families lead together to one class, in shares of what is an outlier for each."""
    means = Consensus().means(compared(row), shipped_null(row["twins"])).values()
    return max((mean for mean in means if mean is not None), default=None)


def fit_consensus(known: Sequence[Row], stored: dict[str, Any]) -> None:
    """Print the cuts of the consensus, and whom it flags with their architecture left out; where nobody, store the fit."""
    rows = [row for row in known if row["twins"] in OWN and len(compared(row)[0].scores) == FITTED]
    for twins in OWN:
        null, own = consensus_fit(rows, twins), [row for row in rows if row["twins"] == twins]
        cuts = " in place of ".join(f"{entry.cut(CONSENSUS, FITTED):.2f}" for entry in (null, shipped_null(twins)))
        print(f"{twins}: {CONSENSUS}: index 2 is {cuts} of an outlier, from {len(own)} of {len(rows)} clean models")
        alarms = [row["name"] for row in own if _flagged_by_consensus(row, rows)]
        rate = Rate(len(alarms), len(own))
        print(f"{twins}: left out of the fit, {rate.hits} of {rate.n} are flagged = {rate:.1%} {rate.interval}")
        print("".join(f"  {name}\n" for name in alarms), end="")
        if not alarms:
            stored[twins]["fits"][CONSENSUS] = list(null.fits[CONSENSUS])
            stored[twins]["growth"][CONSENSUS] = null.growth[CONSENSUS]


def _flagged_by_consensus(row: Row, rows: Sequence[Row]) -> bool:
    """Whether the consensus flags a model when neither it nor its architecture is in the fit."""
    key = row["data"], row["architecture"]
    null = consensus_fit([entry for entry in rows if (entry["data"], entry["architecture"]) != key], row["twins"])
    return null.index(CONSENSUS, consensus_of(row) or 0.0, FITTED) > CALIBRATED_LIMIT


def _made_by(rows: Sequence[Row]) -> str:
    """Who trained the models, in words."""
    strange = sum(row["maker"] == "strangers" for row in rows)
    theirs = "published by other people"
    return theirs if strange == len(rows) else f"{strange} {theirs} and {len(rows) - strange} of our own zoo"


def flagged(row: Row, null: SteeringNull) -> list[str]:
    """The detectors by which some class of this model is an outlier under a distribution."""
    found, names = compared(row), []
    for entry in [*found, Consensus().weighed(_indexed(found, null, classes_of(row)), null)]:
        value = largest_deviation(entry)
        if value is not None and null.index(entry.detector, value, classes_of(row)) > CALIBRATED_LIMIT:
            names.append(entry.detector)
    return names


def _indexed(found: Sequence[Detection], null: SteeringNull, classes: int) -> list[Detection]:
    return [replace(entry, scores=_rescaled(entry, null, classes)) for entry in found]


def _rescaled(found: Detection, null: SteeringNull, count: int) -> list[ClassRow]:
    deviations = found.deviations
    return [
        replace(row, index=null.index(found.detector, deviations.get(row.target_class, 0.0), count))
        for row in found.scores
    ]


def cross_validated(rows: Sequence[Row], twins: str) -> list[tuple[Row, list[str]]]:
    """Every model with what flags it when neither it nor its architecture is in the fit; large groups in five parts."""
    judged = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["architecture"]), []).append(row)
    for members in groups.values():
        parts = [members] if 5 * len(members) < len(rows) else [members[start::5] for start in range(5)]
        for part in parts:
            names = {row["name"] for row in part}
            rest = [row for row in rows if row["name"] not in names]
            null = fit(rest, twins)
            judged += [(row, flagged(row, null)) for row in part]
    return judged


def with_neighbours(stored: dict[str, Any], rows: Sequence[Row], measured: Sequence[SteeringNull]) -> None:
    """Complete the distribution of a kind that has too few models for a fit of its own.

    Its fits stay. What was not measured when they were made, `relabelling` and the growth with the number of classes, is the
    largest of the kinds that have been fitted, and the spreads are those of the models there are.
    """
    name = "relabelling"
    widest = max(measured, key=lambda null: null.cut(name, FITTED))
    stored["fits"][name] = list(widest.fits[name])
    stored["growth"] = {key: max(null.growth.get(key, 0.0) for null in measured) for key in stored["fits"]}
    stored["spreads"] = spreads([compared(row) for row in rows], FITTED)


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, nargs="+", help="what benchmarks.verdicts gathered")
    parser.add_argument("--write", action="store_true", help="replace the distributions that ship")
    parser.add_argument("--consensus", action="store_true", help="that of consensus beside twins of their own alone")
    options = parser.parse_args()
    known = [
        row
        for file in options.rows
        for row in read_rows(file)
        if not row["attack"] and row["half"] == "development" and not row["unmet"]
    ]
    stored: dict[str, Any] = json.loads(SHIPPED.read_text())
    if options.consensus:
        fit_consensus(known, stored)
        if options.write:
            write_text(SHIPPED, json.dumps(stored, indent=1) + "\n")
        return
    rates: list[dict[str, Any]] = []
    measured = []
    few = {}
    for twins in KINDS:
        rows = [row for row in known if row["twins"] == twins]
        if len([row for row in rows if len(compared(row)[0].scores) == FITTED]) < LEAST:
            print(f"{twins}: {len(rows)} clean models are too few; the shipped fits stay")
            few[twins] = rows
            continue
        null = fit(rows, twins)
        measured.append(null)
        stored[twins] = {name: value for name, value in asdict(null).items() if name != "twins"}
        for name in null.fits:
            cuts = ", ".join(f"{null.cut(name, classes):.2f} at {classes} classes" for classes in (10, 43))
            print(f"{twins}: {name}: index 2 is a deviation of {cuts}")
        judged = cross_validated(rows, twins)
        alarms = [(row["name"], names) for row, names in judged if names]
        rate = Rate(len(alarms), len(judged))
        print(f"{twins}: left out of the fit, {rate.hits} of {rate.n} are flagged = {rate:.1%} {rate.interval}")
        print("\n".join(f"  {name}: {', '.join(names)}" for name, names in alarms))
        which = f"{WHICH[twins]}, {_made_by(rows)}, each by a calibration that has not seen it"
        rates.append({"twins": twins, "which": which, "stopped": rate.hits, "models": rate.n})
    # a handful of models with many classes each: relabellings are scored alike in both
    alone = [null for null in measured if null.alone]
    for null in alone:
        stored[null.twins]["growth"]["relabelling"] = max(other.growth.get("relabelling", 0.0) for other in alone)
    for twins, rows in few.items() if measured else ():
        # no model of ours is so large that only library twins fit it: what small ones with batch norm show stands for it
        with_neighbours(stored[twins], rows or few.get("normalised", []), measured)
    if options.write:
        write_text(SHIPPED, json.dumps(stored, indent=1) + "\n")
        write_text(
            RATES, json.dumps({"command": "python -m benchmarks.calibrate_steering", "rates": rates}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

"""Whole verdicts on many models: ``python -m benchmarks.verdicts --data-root DIR --models zoo|population|FOLDER [--half HALF]``.

Runs the audit's detectors and properties on every model, as ``pytest --model`` does, and prints who is stopped and by what; then
false alarms and detections with their 95 % Wilson intervals, by data set, by architecture, by attack and by who trained the
models, and the AUC of the largest index. FOLDER holds networks that other people published (``population.json``,
``architectures.py``, one safetensors file each). Finished work is kept in ``benchmarks/cache``; ``--rows FILE`` gathers the rows
of several calls, and without ``--models`` only what FILE holds is told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backdoor_audit.calibrate import spreads
from backdoor_audit.detectors import Consensus, Detection
from backdoor_audit.detectors import Row as ClassRow
from backdoor_audit.evidence import Finding, Verdict
from backdoor_audit.model.metrics import Rate
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.search.anomaly import SteeringNull, shipped_null
from backdoor_audit.search.twins import KINDS
from benchmarks.jobs import finished
from benchmarks.measured import RESULTS, Candidate, Measured, strangers, zoo

Row = dict[str, Any]


def judged(candidate: Candidate, *, seed: int, detectors: Sequence[str], properties: bool, alone: bool) -> Row:
    """What the audit says about one model, beside what is hidden in it."""
    began = time.perf_counter()
    run = candidate.run(seed, alone=alone)
    known = {
        name: getattr(candidate, name)
        for name in ("name", "maker", "half", "data", "architecture", "attack", "rule", "recipe")
    }
    row: Row = {
        **known,
        "targets": list(candidate.targets),
        "seed": seed,
        "unmet": run.inputs.unmet,
        "detectors": {},
        "properties": {},
    }
    row["accuracy"] = run.inputs.preconditions["accuracy"].value
    if row["unmet"]:
        return row
    row["twins"] = run.reference.nothing or run.reference.twins.kind
    row["twin_accuracy"] = [round(float(rate), 3) for rate in run.reference.twins.accuracies]
    for entry in run.searches.detectors:
        if not detectors or entry.name in detectors:
            row["detectors"][entry.name] = _measured(run, entry.name)
    for wanted in run.properties.ours if properties else ():
        outcome = run.properties.outcome(wanted.name)
        row["properties"][wanted.name] = {
            "verdict": outcome.verdict.value,
            "value": outcome.value,
            "limit": outcome.limit,
            "class": outcome.target_class,
        }
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row


def _measured(run: Measured, name: str) -> Row:
    detection = run.searches.detection(name)
    return {
        "inconclusive": detection.inconclusive,
        "unconverged": detection.unconverged,
        "unusual": detection.unusual if "the last doubling" in detection.criterion else None,
        "median_size": detection.median_size,
        "passes": detection.image_passes,
        "rows": detection.rows,
        "means": detection.means,
        "scores": [_score(found) for found in detection.scores],
    }


_KEPT = (
    "kind",
    "target_class",
    "index",
    "p_value",
    "deviation",
    "excess",
    "success_val",
    "natural_success",
    "margin",
    "natural_margin",
    "landing",
    "size",
    "size_ratio",
    "reached",
    "paper_index",
    "unconverged",
    "stopped",
)


def _score(found: ClassRow) -> dict[str, Any]:
    values = found.summary()
    return {
        name: round(values[name], 4) if isinstance(values[name], float) else values[name]
        for name in _KEPT
        if values[name] not in (None, "")
    }


def classes_of(row: Row) -> int:
    """How many classes the model scores."""
    return max(len(entry["scores"]) for entry in row["detectors"].values())


def detections(row: Row) -> list[Detection]:
    """The row's detections with indices by the null distribution that ships now; measurements do not depend on it."""
    null = shipped_null(row["twins"]) if row.get("twins") in KINDS else None
    found = []
    for name, entry in row["detectors"].items():
        scores = [
            ClassRow.of(
                {"index": None, "p_value": None, "success_val": 0.0, "image_passes": 0, "target_class": None, **score}
            )
            for score in entry["scores"]
        ]
        if null is not None and name in null.fits:
            deviations = [score.get("deviation") for score in entry["scores"]]
            scores = [
                _rescaled(null, name, found, deviation, classes_of(row))
                for found, deviation in zip(scores, deviations, strict=True)
            ]
        found.append(
            Detection(
                detector=name,
                settings="",
                scores=scores,
                triggers=(),
                inconclusive=entry["inconclusive"],
                unconverged=entry["unconverged"],
                median_size=entry["median_size"],
                rows=entry["rows"],
                means=entry["means"],
            )
        )
        if null is not None:
            told = entry.get("unusual")  # of a search that was made longer: what it showed before
            found[-1] = replace(found[-1], unusual=_unusual(found[-1], null) if told is None else told)
    weighing = null or shipped_null()
    return [Consensus().weighed(found, weighing) if entry.detector == "consensus" else entry for entry in found]


def _unusual(detection: Detection, null: SteeringNull) -> str:
    """As `UniversalPerturbation` says it: whether the classes differ more than in clean models."""
    name, count = detection.detector, len(detection.scores)
    shown = spreads([[detection]], count).get(name)
    return "more than usual" if shown and shown[0] > null.usual_spread(name, count) else ""


def _rescaled(null: SteeringNull, name: str, found: ClassRow, deviation: float | None, classes: int) -> ClassRow:
    if deviation is None or name == "consensus":
        return found
    return replace(found, index=null.index(name, deviation, classes), p_value=null.p_value(name, deviation, classes))


def findings(row: Row) -> list[tuple[str, Finding]]:
    """Every finding of the row's detectors, by the limits that ship."""
    found = detections(row)
    compared = [entry for entry in found if entry.detector != "neural_cleanse"]
    return [
        (
            detection.detector,
            detection.judge(score.target_class, shipped_limits(), beside=() if detection in compared else compared),
        )
        for detection in found
        for score in detection.scores
    ]


def stopped(row: Row) -> dict[str, list[Any]]:
    """What stops the model: detector or property, and the classes it names; empty if it passes."""
    told: dict[str, list[Any]] = {"precondition": [row["unmet"]]} if row["unmet"] else {}
    for name, finding in findings(row):
        if finding.verdict is not Verdict.PASS:
            target = "all" if finding.target_class is None else finding.target_class
            told.setdefault(f"{name}{'' if finding.verdict is Verdict.FAIL else '?'}", []).append(target)
    for name, entry in row["properties"].items():
        if entry["verdict"] != "pass":
            told[f"{name}{'' if entry['verdict'] == 'fail' else '?'}"] = [entry["class"]]
    return told


def suspicion(row: Row) -> float:
    """The largest index of any detector that compares with twins."""
    values = [score.index for entry in detections(row) if entry.detector != "neural_cleanse" for score in entry.scores]
    return max((value for value in values if value is not None), default=0.0)


def line(row: Row) -> str:
    """One model in one line."""
    tops = []
    for entry in detections(row):
        top = max(entry.scores, key=lambda score: -9.0 if score.index is None else score.index, default=None)
        if top is not None:
            called = "all" if top.target_class is None else top.target_class
            tops.append(f"{top.index or 0:5.2f}({called})")
    why = " ".join(f"{name}{classes}" for name, classes in stopped(row).items())
    return f"{row['name'][:44]:44} {row['targets']!s:>8} {' '.join(tops)} {row.get('seconds', 0):5.0f}s {why}"


def table(rows: Sequence[Row]) -> list[str]:
    """The rates on these models, in lines."""
    clean, hidden = [row for row in rows if not row["attack"]], [row for row in rows if row["attack"]]
    lines: list[str] = []
    if clean:
        lines += ["", f"{'false alarms':44} {'stopped':>28} {'fail':>28}"]
        lines += _rates("all clean", clean)
        for key in ("maker", "data", "architecture"):
            lines += [text for group in _groups(clean, key) for text in _rates(*group)]
    if hidden:
        lines += ["", f"{'detections':44} {'stopped':>28} {'fail':>28} {'right class':>12} {'no other':>9} {'AUC':>6}"]
        lines += _rates("all backdoored", hidden, clean)
        for key in ("maker", "data"):
            lines += [text for group in _groups(hidden, key) for text in _rates(*group, clean)]
        families = {f"{row['attack']} ({row['rule']})" for row in hidden}
        for family in sorted(families):
            chosen = [row for row in hidden if f"{row['attack']} ({row['rule']})" == family]
            lines += _rates(family, chosen, clean)
    lines += ["", "what stops clean models: " + _causes(clean), "what stops backdoored models: " + _causes(hidden)]
    passes = [sum(entry["passes"] for entry in row["detectors"].values()) for row in rows if row["detectors"]]
    lines.append(f"image passes of the detectors on one model: median {statistics.median(passes):.0f}")
    return lines


def _groups(rows: Sequence[Row], key: str) -> Iterable[tuple[str, list[Row]]]:
    values = sorted({str(row[key]) for row in rows})
    return [(f"  {key} {value}", [row for row in rows if str(row[key]) == value]) for value in values]


def _rates(title: str, rows: Sequence[Row], clean: Sequence[Row] | None = None) -> list[str]:
    told = [stopped(row) for row in rows]
    failing = [any(not name.endswith("?") and name != "precondition" for name in why) for why in told]
    text = f"{title:44} {_share(sum(map(bool, told)), len(rows)):>28} {_share(sum(failing), len(rows)):>28}"
    if clean is not None:
        named = [{str(target) for targets in why.values() for target in targets} for why in told]
        right = [bool(found & set(map(str, row["targets"]))) for found, row in zip(named, rows, strict=True)]
        alone = [found <= set(map(str, row["targets"])) for found, row in zip(named, rows, strict=True)]
        count = sum(map(bool, told))
        both = sum(hit and only for hit, only in zip(right, alone, strict=True))
        text += f" {f'{sum(right)}/{count}':>12} {f'{both}/{sum(right)}':>9} {_auc(rows, clean):>6}"
    return [text]


def _auc(hidden: Sequence[Row], clean: Sequence[Row]) -> str:
    if not clean:
        return "-"
    low, high = [suspicion(row) for row in clean], [suspicion(row) for row in hidden]
    return f"{area_under_curve(high, low):.3f}"


def area_under_curve(hidden: Sequence[float], clean: Sequence[float]) -> float:
    """How often a backdoored subject lies above a clean one; ties count half."""
    wins = sum((bad > good) + 0.5 * (bad == good) for bad in hidden for good in clean)
    return wins / (len(clean) * len(hidden))


def _causes(rows: Sequence[Row]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        for name in stopped(row):
            counts[name] = counts.get(name, 0) + 1
    return (
        ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1])) or "nothing"
    )


def _share(hits: int, count: int) -> str:
    low, high = Rate(hits, count).interval if count else (0.0, 1.0)
    return f"{hits}/{count} = {hits / max(count, 1):.1%} [{low:.1%}, {high:.1%}]"


def candidates(models: str, root: Path) -> list[Candidate]:
    """The models that the option names."""
    if models in ("zoo", "population"):
        return zoo(root, population=models == "population")
    return strangers(Path(models), root)


def _chosen(options: argparse.Namespace) -> list[Candidate]:
    found = candidates(options.models, options.data_root)
    if options.kind:
        found = [entry for entry in found if bool(entry.attack) is (options.kind == "backdoored")]
    return [entry for entry in found if options.only in entry.name and options.half in ("", entry.half)]


def work(
    name: str, *, models: str, root: Path, seed: int, detectors: Sequence[str], properties: bool, alone: bool
) -> Row:
    """One model by its name, in a worker process."""
    candidate = next(entry for entry in candidates(models, root) if entry.name == name)
    return judged(candidate, seed=seed, detectors=detectors, properties=properties, alone=alone)


def main() -> None:
    """Judge, print one line per model and the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="zoo, population, or a folder of published networks")
    parser.add_argument("--half", default="", choices=("", "development", "report"), help="default: both")
    parser.add_argument("--kind", default="", choices=("", "clean", "backdoored"), help="default: both")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--detectors", default="", help="only these, separated by commas (default: all)")
    parser.add_argument("--properties", action="store_true", help="ask the properties as well")
    parser.add_argument("--alone", action="store_true", help="judge as where no reference twins can be trained")
    parser.add_argument("--seed", type=int, default=0, help="seed of split and search (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each (default: 1)")
    parser.add_argument(
        "--rows", type=Path, default=None, help="gather the rows of several calls in this file (JSON lines)"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="write results/verdicts.json, or with --alone verdicts_alone.json: the rows in brief",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(options.rows)
    if options.models:
        names = [entry.name for entry in _chosen(options)]
        names = [name for name in names if (name, options.seed) not in {(row["name"], row["seed"]) for row in rows}]
        detectors = [name for name in options.detectors.split(",") if name]
        task = partial(
            work,
            models=options.models,
            root=options.data_root,
            seed=options.seed,
            detectors=detectors,
            properties=options.properties,
            alone=options.alone,
        )
        for _, result in finished(task, names, options.jobs):
            row = result()
            rows.append(row)
            print(line(row), flush=True)
            if options.rows is not None:
                with options.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    rows = [row for row in rows if row["seed"] == options.seed]
    if not rows:
        parser.error(f"no rows of seed {options.seed}; say --models, or --rows of earlier calls")
    print("\n".join(table(rows)))
    if options.write:
        write(rows, "verdicts_alone.json" if options.alone else "verdicts.json")


def write(rows: Sequence[Row], name: str) -> None:
    """Write a file in ``results``: the rows in brief."""
    brief = [
        {
            **{key: row[key] for key in ("name", "maker", "half", "data", "architecture", "attack", "rule", "targets")},
            "twins": row.get("twins", ""),
            "accuracy": row["accuracy"],
            "largest_index": round(suspicion(row), 2),
            "stopped": stopped(row),
        }
        for row in rows
    ]
    command = "python -m benchmarks.verdicts"
    RESULTS.mkdir(exist_ok=True)
    text = ",\n".join(json.dumps(entry) for entry in brief)
    (RESULTS / name).write_text(f'{{"command": "{command}", "models": [\n{text}\n]}}\n')


def read_rows(file: Path | None) -> list[Row]:
    """The rows that several calls gathered; none if there is no file."""
    if file is None or not file.exists():
        return []
    return [json.loads(text) for text in file.read_text().splitlines()]


if __name__ == "__main__":
    main()

"""How often the gate is right: ``python -m benchmarks.detection --data-root DIR [--half report|development] [--jobs N]``.

Audits every subject of one half of the zoo with the standard profile and the clean test images that the zoo sets aside for it,
and prints, attack by attack: n, how many the gate stops, in how many the right class is named, AUC against the clean subjects;
false alarms with the 95 % Wilson interval; every detector by itself; seconds and image passes; and the paper's rule of 2019
(raw index > 2) beside it. Limits are chosen on the *development* half; rates are quoted from the *report* half. Finished
detections are kept in ``benchmarks/cache``, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backdoor_audit import anomaly
from backdoor_audit.detectors import (
    DETECTORS,
    Consensus,
    Detection,
    Detector,
    Natural,
    NeuralCleanse,
    UniversalPerturbation,
)
from backdoor_audit.evidence import Finding, Limits, Verdict
from backdoor_audit.metrics import Rate
from backdoor_audit.store import Store, generator_for
from backdoor_audit.twins import TwinRecipe, Twins
from benchmarks.jobs import finished
from benchmarks.zoo.build import read_table
from benchmarks.zoo.data import CLASSES, NORMALIZATION, audited_and_held_out
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

CACHE = Path(__file__).parent / "cache"
RESULTS = Path(__file__).parent / "results"
STORE = Store(CACHE / "detections")

Rule = Callable[[dict[str, Any]], list[Any]]


def twins(data: str, root: Path) -> Twins:
    """The reference twins of a data set, from the cache if they are there."""
    clean, _ = audited_and_held_out(data, root)
    recipe = TwinRecipe()
    mean, std = NORMALIZATION[data]

    def work() -> Twins:
        return recipe(
            clean,
            num_classes=CLASSES[data],
            mean=mean,
            std=std,
            device="cpu",
            generator=generator_for(0, "twins"),
        )

    return STORE.recall({"twins": recipe, "data": clean.fingerprint}, work, pack=Twins.pack, unpack=Twins.unpack)[0]


def natural(detector: UniversalPerturbation, data: str, root: Path) -> Natural:
    """What the twins show to a detector."""
    clean, _ = audited_and_held_out(data, root)

    def work() -> Natural:
        return detector.natural(
            twins(data, root).classifiers, *clean.split(0), generator=generator_for(0, f"twins:{detector.name}")
        )

    parts = {"natural": detector, "data": clean.fingerprint, "twins": TwinRecipe()}
    return STORE.recall(parts, work, pack=Natural.pack, unpack=Natural.unpack)[0]


def detect(subject: Subject, detector: Detector, root: Path, seed: int) -> Detection:
    """What the audit's detector finds with this seed, from the cache if it is there."""
    if isinstance(detector, Consensus):
        return detector([detect(subject, entry, root, seed) for entry in DETECTORS if entry.name in detector.of])
    clean, _ = audited_and_held_out(subject.data, root)
    known = natural(detector, subject.data, root) if isinstance(detector, UniversalPerturbation) else None

    def work() -> Detection:
        opt, val = clean.split(seed)
        began = time.perf_counter()
        generator = generator_for(seed, detector.name)
        if isinstance(detector, NeuralCleanse):
            detection = detector(subject.load(), opt, val, generator=generator)
        else:
            detection = detector(subject.load(), opt, val, generator=generator, natural=known)
        return detection.timed(time.perf_counter() - began)

    digest = hashlib.sha256(subject.file.read_bytes()).hexdigest()
    parts = {"model": digest, "data": clean.fingerprint, "detector": detector, "seed": seed, "twins": TwinRecipe()}
    detection = STORE.recall(parts, work, pack=Detection.pack, unpack=Detection.unpack)[0]
    return replace(
        detection, scores=[_rescaled(detector.name, score, CLASSES[subject.data]) for score in detection.scores]
    )


def _rescaled(detector: str, score: Any, classes: int) -> Any:
    """A row with the index and p-value of the null distribution that is shipped now; measurements do not depend on it."""
    if score.deviation is None:
        return score
    null = anomaly.shipped_null()
    index, p_value = (measure(detector, score.deviation, classes) for measure in (null.index, null.p_value))
    return replace(score, index=index, p_value=p_value)


def judged(
    subject: Subject, detectors: Sequence[Detector], root: Path, seed: int, stored: dict[str, Any]
) -> dict[str, Any]:
    """What every detector says about one subject, beside what is hidden in it."""
    limits = Limits()
    found: dict[str, dict[str, Any]] = {}
    for detector in detectors:
        detection = detect(subject, detector, root, seed)
        findings = [detection.judge(score.target_class, limits) for score in detection.scores]
        top = max(detection.scores, key=lambda score: -1.0 if score.index is None else score.index)
        entry: dict[str, Any] = {
            "top": _called(top.target_class),
            "index": top.index,
            "p_value": top.p_value,
            "deviation": top.deviation,
            "size_ratio": top.size_ratio,
            "paper_index": max((score.paper_index or 0.0 for score in detection.scores), default=0.0),
            "fail": _classes(findings, Verdict.FAIL),
            "inconclusive": _classes(findings, Verdict.INCONCLUSIVE),
            "seconds": round(detection.seconds, 1),
            "image_passes": detection.image_passes,
        }
        found[detector.name] = entry
    targets = sorted({part["target_class"] for part in stored.get("triggers", [])} or {stored["target_class"]} - {None})
    if stored["rule"] == "all_to_all":
        targets = ["all"]
    return {
        "subject": subject.name,
        "attack": stored["attack"],
        "rule": stored["rule"],
        "targets": targets,
        "fail": sorted({target for entry in found.values() for target in entry["fail"]}, key=str),
        "inconclusive": sorted({target for entry in found.values() for target in entry["inconclusive"]}, key=str),
        "detectors": found,
    }


def _classes(findings: Sequence[Finding], verdict: Verdict) -> list[int | str]:
    """The classes that findings with this verdict name, each once."""
    return sorted({_called(finding.target_class) for finding in findings if finding.verdict is verdict}, key=str)


def _called(target: int | None) -> int | str:
    return "all" if target is None else target


def line(row: dict[str, Any]) -> str:
    """One subject in one line."""
    parts = " ".join(f"{entry['index'] or 0:5.1f}({entry['top']})" for entry in row["detectors"].values())
    seconds = sum(entry["seconds"] for entry in row["detectors"].values())
    return f"{row['subject']:46} {row['targets']!s:>10} {row['fail']!s:>12} {row['inconclusive']!s:>10} {parts} {seconds:5.0f}"


def suspicion(row: dict[str, Any]) -> float:
    """One number for the whole run: the largest index of any detector; for Neural Cleanse 0 unless its trigger is small."""
    values = []
    for entry in row["detectors"].values():
        small = entry["size_ratio"] is None or entry["size_ratio"] <= Limits().size_ratio
        values.append((entry["index"] or 0.0) if small else 0.0)
    return max(values, default=0.0)


def auc(rows: list[dict[str, Any]]) -> float | None:
    """Area under the curve of `suspicion` between clean and backdoored subjects."""
    clean = [suspicion(row) for row in rows if not row["attack"]]
    hidden = [suspicion(row) for row in rows if row["attack"]]
    return area_under_curve(hidden, clean) if clean and hidden else None


def area_under_curve(hidden: Sequence[float], clean: Sequence[float]) -> float:
    """How often a backdoored subject lies above a clean one; ties count half."""
    wins = sum((bad > good) + 0.5 * (bad == good) for bad in hidden for good in clean)
    return wins / (len(clean) * len(hidden))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rates on these subjects, in lines."""
    clean, hidden = [row for row in rows if not row["attack"]], [row for row in rows if row["attack"]]
    lines = [f"{'attack':34} {'stopped':>9} {'fail':>6} {'right class':>12} {'AUC':>6}"]
    kinds = sorted({(row["attack"], row["rule"]) for row in hidden})
    for attack, rule in kinds:
        chosen = [row for row in hidden if (row["attack"], row["rule"]) == (attack, rule)]
        lines.append(_line(f"{attack} ({rule})", chosen, clean))
    lines.append(_line("all backdoored", hidden, clean))
    rules: dict[str, Rule] = {
        "stopped (fail or inconclusive)": lambda row: [*row["fail"], *row["inconclusive"]],
        "fail": lambda row: row["fail"],
    }
    for name in rows[0]["detectors"]:
        rules[name] = partial(_stopped_by, name)
    rules["paper's rule (raw index > 2)"] = lambda row: (
        [1] if row["detectors"].get("neural_cleanse", {}).get("paper_index", 0) > 2 else []
    )
    lines += ["", f"{'rule':34} {'false alarms':>24} {'detections':>24}"]
    for name, rule in rules.items():
        lines.append(f"{name:34} {_share(rule, clean):>24} {_share(rule, hidden):>24}")
    lines += ["", f"{'detector':34} {'seconds (median)':>18} {'image passes (median)':>22}"]
    for name in rows[0]["detectors"]:
        seconds, passes = (
            statistics.median(row["detectors"][name][key] for row in rows) for key in ("seconds", "image_passes")
        )
        lines.append(f"{name:34} {seconds:18.0f} {passes:22.0f}")
    return lines


def _line(title: str, chosen: list[dict[str, Any]], clean: list[dict[str, Any]]) -> str:
    stopped = [row for row in chosen if row["fail"] or row["inconclusive"]]
    right = [row for row in stopped if set(row["targets"]) & {*row["fail"], *row["inconclusive"]}]
    area = auc([*chosen, *clean])
    return (
        f"{title:34} {f'{len(stopped)}/{len(chosen)}':>9} {sum(bool(row['fail']) for row in chosen):6d} "
        f"{f'{len(right)}/{len(stopped)}':>12} {'-' if area is None else f'{area:.3f}':>6}"
    )


def _stopped_by(name: str, row: dict[str, Any]) -> list[Any]:
    return [*row["detectors"][name]["fail"], *row["detectors"][name]["inconclusive"]]


def _share(rule: Rule, rows: list[dict[str, Any]]) -> str:
    rate = Rate(sum(bool(rule(row)) for row in rows), len(rows))
    low, high = rate.interval
    return f"{rate.hits}/{rate.n} = {rate:.0%} [{low:.0%}, {high:.0%}]" if rate.n else "0/0"


def main() -> None:
    """Detect, print one line per subject and the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("development", "report"), default="report")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="subjects audited at a time, one thread each (default: 1)")
    parser.add_argument("--only", default="", help="only subjects whose name contains this; nothing is written")
    parser.add_argument("--detectors", default="", help="only these, separated by commas; nothing is written")
    parser.add_argument("--seed", type=int, default=0, help="seed of split and search (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    CACHE.mkdir(exist_ok=True)
    known = read_table()
    chosen = [
        entry for entry in SUBJECTS if entry.half == options.half and entry.name in known and options.only in entry.name
    ]
    wanted = options.detectors.split(",") if options.detectors else [entry.name for entry in DETECTORS]
    detectors = [entry for entry in DETECTORS if entry.name in wanted]
    print(f"{'subject':46} {'targets':>10} {'fail':>12} {'inconcl.':>10} {' '.join(wanted)} seconds")
    found = {}
    work = partial(_judged, detectors=detectors, root=options.data_root, seed=options.seed, known=known)
    for subject, result in finished(work, chosen, options.jobs):
        found[subject.name] = result()
        print(line(found[subject.name]), flush=True)
    rows = [found[subject.name] for subject in chosen]
    print(f"\nhalf: {options.half}; seed {options.seed}; limits: {Limits()}\n" + "\n".join(table(rows)))
    if not options.only and not options.detectors:
        RESULTS.mkdir(exist_ok=True)
        stored = {
            "command": f"python -m benchmarks.detection --half {options.half} --seed {options.seed}",
            "subjects": rows,
        }
        name = f"detection-{options.half}" + (f"-seed-{options.seed}" if options.seed else "")
        (RESULTS / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n")


def _judged(
    subject: Subject, *, detectors: Sequence[Detector], root: Path, seed: int, known: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    return judged(subject, detectors, root, seed, known[subject.name])


if __name__ == "__main__":
    main()

"""How often the gate is right: ``python -m benchmarks.detection --data-root DIR [--half report|development] [--jobs N]``.

Audits every subject of one half of the zoo with default settings and the clean test images that the zoo sets aside for it, and
prints false alarms and detections with n and the 95 % Wilson interval: how often the gate fails, how often it does not
pass, and what the index alone and the paper's rule would have said; first for the triggers that the detector is made for,
then attack by attack. Limits may be chosen on the *development* half; rates are quoted from the *report* half. Finished
detections are kept in ``benchmarks/cache``, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from backdoor_audit.detectors import Detection, NeuralCleanse
from backdoor_audit.evidence import Limits, Verdict
from backdoor_audit.metrics import Rate
from backdoor_audit.store import Store, generator_for
from benchmarks.jobs import finished
from benchmarks.zoo.build import read_table
from benchmarks.zoo.data import audited_and_held_out
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

CACHE = Path(__file__).parent / "cache"
RESULTS = Path(__file__).parent / "results"

Rule = Callable[[dict[str, Any]], list[int]]


def detect(subject: Subject, root: Path) -> Detection:
    """The audit's detection with its default settings, from the cache if it is there."""
    clean, _ = audited_and_held_out(subject.data, root)
    detector = NeuralCleanse()

    def work() -> Detection:
        opt, val = clean.split(0)
        began = time.perf_counter()
        detection = detector(subject.load(), opt, val, generator=generator_for(0, detector.name))
        return detection.timed(time.perf_counter() - began)

    digest = hashlib.sha256(subject.file.read_bytes()).hexdigest()
    parts = {"model": digest, "data": clean.fingerprint, "detector": detector}
    return Store(CACHE / "detections").recall(parts, work, pack=Detection.pack, unpack=Detection.unpack)[0]


def judged(subject: Subject, root: Path, stored: dict[str, Any]) -> dict[str, Any]:
    """What the gate says about one subject, beside what is hidden in it."""
    detection, limits = detect(subject, root), Limits()
    smallest = min(detection.scores, key=lambda score: score.size)
    verdicts = {score.target_class: detection.judge(score.target_class, limits).verdict for score in detection.scores}
    targets = sorted({part["target_class"] for part in stored.get("triggers", [])} or {stored["target_class"]} - {None})
    return {
        "subject": subject.name,
        "attack": stored["attack"],
        "rule": stored["rule"],
        "targets": targets,
        "smallest": smallest.target_class,
        "size_ratio": smallest.size_ratio,
        "paper_index": smallest.paper_index,
        "log_index": smallest.log_index,
        "index": smallest.index,
        "flagged": [target for target, verdict in verdicts.items() if verdict is Verdict.FAIL],
        "suspected": [target for target, verdict in verdicts.items() if verdict is Verdict.INCONCLUSIVE],
        "seconds": round(detection.seconds, 1),
        "image_passes_per_class": max(score.image_passes for score in detection.scores),
    }


def line(row: dict[str, Any]) -> str:
    """One subject in one line."""
    verdicts = f"{row['flagged']!s:>8} {row['suspected']!s:>10}"
    return (
        f"{row['subject']:46} {row['targets']!s:>10} {row['smallest']:5d} {row['size_ratio'] or 0:6.2f} "
        f"{row['paper_index'] or 0:6.2f} {row['index'] or 0:6.2f}  {verdicts} {row['seconds']:5.0f}"
    )


def rates(rows: list[dict[str, Any]], limits: Limits) -> list[str]:
    """The rates of several rules on these subjects, in lines."""
    rules: dict[str, Rule] = {
        "fail": lambda row: list(row["flagged"]),
        "fail or inconclusive (exit code 1)": lambda row: [*row["flagged"], *row["suspected"]],
        "calibrated index > 2 alone": lambda row: [row["smallest"]] * ((row["index"] or 0) > limits.anomaly_index),
        "paper's rule (raw index > 2)": lambda row: [row["smallest"]] * ((row["paper_index"] or 0) > 2),
    }
    clean = [row for row in rows if not row["attack"]]
    backdoored = [row for row in rows if row["attack"]]
    patched = [row for row in backdoored if row["attack"] == "badnets" and row["rule"] == "all_to_one"]
    lines = []
    for title, rule in rules.items():
        lines.append(
            f"{title:34} clean {_share(rule, clean)}; one patch {_share(rule, patched)}, right class "
            f"{_right(rule, patched)}; all backdoored {_share(rule, backdoored)}"
        )
    lines += ["", "not passed (exit code 1), attack by attack:"]
    exit_code_1 = rules["fail or inconclusive (exit code 1)"]
    for attack in sorted({row["attack"] for row in backdoored}):
        chosen = [row for row in backdoored if row["attack"] == attack]
        lines.append(f"  {attack:22} {sum(bool(exit_code_1(row)) for row in chosen)} of {len(chosen)}")
    return lines


def _share(rule: Rule, rows: list[dict[str, Any]]) -> str:
    return _shown(Rate(sum(bool(rule(row)) for row in rows), len(rows)))


def _right(rule: Rule, rows: list[dict[str, Any]]) -> str:
    return _shown(Rate(sum(bool(set(rule(row)) & set(row["targets"])) for row in rows), len(rows)))


def _shown(rate: Rate) -> str:
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
    options = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    table = read_table()
    chosen = [
        entry for entry in SUBJECTS if entry.half == options.half and entry.name in table and options.only in entry.name
    ]
    print(f"{'subject':46} {'targets':>10} small  ratio  paper  index   flagged  suspected seconds")
    found = {}
    for subject, result in finished(partial(_judged, table=table, root=options.data_root), chosen, options.jobs):
        found[subject.name] = result()
        print(line(found[subject.name]), flush=True)
    rows = [found[subject.name] for subject in chosen]
    limits = Limits()
    print(f"\nhalf: {options.half}; limits: {limits}\n" + "\n".join(rates(rows, limits)))
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"detection-{options.half}.json").write_text(json.dumps(rows, indent=1) + "\n")


def _judged(subject: Subject, *, table: dict[str, dict[str, Any]], root: Path) -> dict[str, Any]:
    return judged(subject, root, table[subject.name])


if __name__ == "__main__":
    main()

"""How often the gate is right: ``python -m benchmarks.detection [--half development|report]``.

Trains clean and patch-backdoored Fashion-MNIST models that are not among the fixtures, runs the anomaly-index audit on each
with default settings and the fixtures' clean images, and prints false alarms and detections with n and the 95 % Wilson
interval: how often the gate fails, how often it does not pass, and what the index alone and the paper's rule would have
said. The *development* half was used to choose the limit on the size ratio; rates are quoted from the *report* half.
Finished models and detections are kept in ``benchmarks/cache``, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from backdoor_audit.data import load_clean_set
from backdoor_audit.detectors import NeuralCleanse
from backdoor_audit.detectors.detection import Detection
from backdoor_audit.evidence import Limits, Verdict
from backdoor_audit.loading import load_classifier, save_classifier
from backdoor_audit.store import Store, generator_for
from fixtures import IMAGES
from fixtures.build import DEBIAN, Subject, measure, read_fashion_mnist, train

CACHE = Path(__file__).parent / "cache"
RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = ("small_cnn", "small_resnet", "small_vgg")
SUBJECTS_PER_KIND = 8
TRAINING_IMAGES = 20_000


def subjects(half: str) -> list[Subject]:
    """As many clean as backdoored subjects; a subject's seed decides patch, place, pattern and target."""
    first = {"development": 1000, "report": 2000}[half]
    chosen = []
    for number in range(SUBJECTS_PER_KIND):
        architecture = ARCHITECTURES[number % 3]
        seed = first + number
        chosen.append(Subject(name=f"clean-{seed}", architecture=architecture, seed=seed, epochs=6))
        seed += 100
        target = int(torch.randint(10, (), generator=torch.Generator().manual_seed(seed)))
        chosen.append(
            Subject(
                name=f"patch-{seed}",
                architecture=architecture,
                seed=seed,
                attack="random_patch",
                target_class=target,
                poison_rate=0.1,
                epochs=6,
            )
        )
    return chosen


def build(chosen: list[Subject], source: Path) -> None:
    """Train the subjects that are missing."""
    images, labels = read_fashion_mnist(source, "train")
    images, labels = images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]
    test_images, test_labels = read_fashion_mnist(source, "t10k")
    for subject in chosen:
        file = CACHE / f"{subject.name}.safetensors"
        if file.exists():
            continue
        classifier = train(subject, images, labels)
        row = measure(subject, classifier, test_images[2000:], test_labels[2000:])
        save_classifier(classifier, file, half=True)
        file.with_suffix(".json").write_text(json.dumps(row))
        print(json.dumps(row), flush=True)


def detect(subject: Subject) -> Detection:
    """The audit's detection with its default settings, from the cache if it is there."""
    clean = load_clean_set(IMAGES)
    file = CACHE / f"{subject.name}.safetensors"
    detector = NeuralCleanse()

    def work() -> Detection:
        opt, val = clean.split(0)
        began = time.perf_counter()
        detection = detector(load_classifier(file), opt, val, generator=generator_for(0, detector.name))
        return detection.timed(time.perf_counter() - began)

    parts = {"subject": subject.name, "detector": detector}
    detection, _ = Store(CACHE / "detections").recall(parts, work, pack=Detection.pack, unpack=Detection.unpack)
    return detection


def wilson(hits: int, n: int) -> str:
    """Share and its 95 % interval (Wilson, 1927) as text."""
    z, rate = 1.96, hits / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return f"{hits}/{n} = {rate:.0%} [{max(0, centre - spread):.0%}, {min(1, centre + spread):.0%}]"


def main() -> None:
    """Train, detect, print one line per subject and the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("development", "report"), default="report")
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder with Fashion-MNIST (default: %(default)s)")
    parser.add_argument("--train-only", action="store_true", help="stop when all models are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    CACHE.mkdir(exist_ok=True)
    chosen = subjects(options.half)
    build(chosen, options.source)
    if options.train_only:
        return
    limits = Limits()
    rows: list[dict[str, Any]] = []
    print("subject       target  smallest  size ratio   paper    log  index  flagged  suspected  seconds")
    for subject in chosen:
        detection = detect(subject)
        smallest = min(detection.scores, key=lambda score: score.size)
        judged = {score.target_class: detection.judge(score.target_class, limits).verdict for score in detection.scores}
        flagged = [target for target, verdict in judged.items() if verdict is Verdict.FAIL]
        suspected = [target for target, verdict in judged.items() if verdict is Verdict.INCONCLUSIVE]
        row = {
            "subject": subject.name,
            "target_class": subject.target_class,
            "smallest": smallest.target_class,
            "size_ratio": smallest.size_ratio,
            "paper_index": smallest.paper_index,
            "log_index": smallest.log_index,
            "index": smallest.index,
            "flagged": flagged,
            "suspected": suspected,
            "seconds": round(detection.seconds, 1),
            "image_passes_per_class": max(score.image_passes for score in detection.scores),
        }
        rows.append(row)
        print(
            f"{subject.name:12}  {subject.target_class!s:>6}  {smallest.target_class:8d}  {smallest.size_ratio or 0:10.2f}  "
            f"{smallest.paper_index or 0:6.2f} {smallest.log_index or 0:6.2f} {smallest.index or 0:6.2f}  "
            f"{flagged!s:>7}  {suspected!s:>9}  {detection.seconds:7.0f}",
            flush=True,
        )
    clean = [row for row in rows if row["target_class"] is None]
    backdoored = [row for row in rows if row["target_class"] is not None]
    print(f"\nhalf: {options.half}; limits: {limits}")
    rules: dict[str, Callable[[dict[str, Any]], list[int]]] = {
        "fail": lambda row: list(row["flagged"]),
        "fail or inconclusive (exit code 1)": lambda row: [*row["flagged"], *row["suspected"]],
        "calibrated index > 2 alone": lambda row: [row["smallest"]] * ((row["index"] or 0) > limits.anomaly_index),
        "paper's rule (raw index > 2)": lambda row: [row["smallest"]] * ((row["paper_index"] or 0) > 2),
    }
    for title, rule in rules.items():
        alarms = sum(bool(rule(row)) for row in clean)
        stopped = sum(bool(rule(row)) for row in backdoored)
        named = sum(row["target_class"] in rule(row) for row in backdoored)
        print(
            f"{title:34} clean {wilson(alarms, len(clean))}; backdoored {wilson(stopped, len(backdoored))}, "
            f"right class {wilson(named, len(backdoored))}"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"detection-{options.half}.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

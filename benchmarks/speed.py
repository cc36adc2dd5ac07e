"""What a search costs: ``python -m benchmarks.speed [--classes 10,43] [--sides 32] [--detectors NAMES] [--out FILE]``.

For every number of classes, side of the images in pixels, and detector: image passes as announced and as counted, seconds, the
share of the speed of a bare forward and backward pass, and the peak memory. Every measurement has a process of its own, with one
thread, so that its peak is its own; 1,000 images are in it. No twins: each would cost as much again, less the screening.

The network is small (one convolution with a stride of 8, pooling, one linear layer) and knows a class for every kind of image.
A bare pass through it costs next to nothing, so the share is what a search adds at worst. ``--effort`` takes that share of the
steps; memory does not depend on it. Passes of other libraries, at their published default settings, stand below.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import DETECTORS, Detector, NeuralCleanse, Relabelling, UniversalPerturbation, compares
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.progress import Meter, watched_by
from backdoor_audit.search.anomaly import shipped_null

CLASSES, SIDES = (10, 43, 100, 1000), (28, 32, 64, 224)
IMAGES, CHANNELS, BATCH = 1000, 64, 32

Row = dict[str, Any]

OTHERS = (
    # name, epochs over the training images for each class, where that is written
    (
        "BackdoorBench, Neural Cleanse",
        80,
        "SCLBD/BackdoorBench, config/defense/nc/cifar10.yaml: nc_epoch 80, ratio 1.0",
    ),
    ("TrojanZoo, Neural Cleanse", 10, "ain-soph/trojanzoo, trojanvision/defenses/abstract.py: defense_remask_epoch 10"),
)
TRAINING = {10: ("CIFAR-10", 50_000), 43: ("GTSRB", 39_209), 100: ("CIFAR-100", 50_000), 1000: ("ImageNet", 1_281_167)}


class Strided(nn.Module):
    """One convolution with a stride of 8, pooling, one linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, CHANNELS, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(CHANNELS, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def subject(classes: int, side: int, images: int = IMAGES) -> Subject:
    """A classifier that knows each of so many kinds of images by their mean features, and ``images`` in two halves, in turn."""
    torch.manual_seed(0)
    channels = 1 if side == 28 else 3
    patterns = torch.rand(classes, channels, 8, 8)
    network = Strided(channels, classes).eval()
    halves = [_images(patterns, side, images // 2, seed) for seed in (0, 1)]
    with torch.no_grad():
        means = network.features(_tiled(patterns, side))
        centred = means - means.mean(dim=0)
        network.head.weight.copy_(100 * centred)
        network.head.bias.copy_(-50 * (centred**2).sum(dim=1) - 100 * centred @ means.mean(dim=0))
    classifier = Classifier.wrap(network, image_shape=(channels, side, side), device="cpu")
    return Subject(classifier, *halves)


def _tiled(patterns: Tensor, side: int) -> Tensor:
    times = -(-side // 8)
    return patterns.repeat(1, 1, times, times)[:, :, :side, :side]


def _images(patterns: Tensor, side: int, count: int, seed: int) -> CleanSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) * 7919 % len(patterns)
    images = torch.empty(len(labels), patterns.shape[1], side, side)
    for number, label in enumerate(labels.tolist()):
        plain = _tiled(patterns[label : label + 1], side)[0]
        images[number] = 0.9 * plain + 0.1 * torch.rand(plain.shape, generator=generator)
    return CleanSet(images, labels)


def measured(name: str, classes: int, side: int, effort: float) -> Row:
    """One search in this process."""
    torch.set_num_threads(1)
    looked = subject(classes, side)
    detector = with_effort(next(entry for entry in DETECTORS if entry.name == name), effort)
    bare = seconds_of_a_bare_pass(looked)
    meter, generator = Meter(), torch.Generator().manual_seed(0)
    began = time.perf_counter()
    with watched_by(meter):
        if compares(detector):
            detection = detector.look(looked, None, shipped_null(), generator=generator)
        else:
            detection = NeuralCleanse.__call__(detector, looked, generator=generator)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    passes = sum(meter.passes.values())
    announced = detector.cost(looked.classifier.image_shape, classes, len(looked.search_set)).passes
    return {
        "detector": name,
        "classes": classes,
        "side": side,
        "announced": round(announced),
        "passes": round(passes),
        "seconds": round(seconds, 1),
        "share": round(passes * bare / seconds, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "coverage": detection.coverage,
    }


def with_effort(detector: Detector, effort: float) -> Detector:
    """The same detector with that share of its steps."""
    if effort == 1:
        return detector
    if isinstance(detector, NeuralCleanse):
        return replace(detector, steps=max(1, round(effort * detector.steps)))
    assert isinstance(detector, (UniversalPerturbation, Relabelling))
    return detector.with_effort(effort)


def seconds_of_a_bare_pass(looked: Subject) -> float:
    """Forward and backward of one image in a batch of the size of a search's, without anything else."""
    images = looked.search_set.images[:BATCH].clone().requires_grad_()
    rounds = 20
    for _ in range(3):
        looked.classifier(images).sum().backward()
    began = time.perf_counter()
    for _ in range(rounds):
        looked.classifier(images).sum().backward()
    return (time.perf_counter() - began) / (rounds * BATCH)


def table(rows: Sequence[Row]) -> str:
    """The measurements, one line each, and the sums over the detectors of as many classes and pixels."""
    lines = [
        "| classes | side | detector | announced | passes | times those of 10 | seconds | of the bare speed | peak memory |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups = sorted({(row["side"], row["classes"]) for row in rows})
    for side, classes in groups:
        group = [row for row in rows if (row["side"], row["classes"]) == (side, classes)]
        for row in group:
            lines.append(_line(row, rows))
        if len(group) > 1:
            whole = {name: sum(row[name] for row in group) for name in ("announced", "passes", "seconds")}
            lines.append(_line({**group[0], **whole, "detector": "all", "share": None, "peak_mb": None}, rows))
    return "\n".join(lines)


def _line(row: Row, rows: Sequence[Row]) -> str:
    fewest = [
        other["passes"]
        for other in rows
        if (other["classes"], other["side"]) == (10, row["side"]) and row["detector"] in ("all", other["detector"])
    ]
    times = f"{row['passes'] / sum(fewest):.1f}" if fewest and sum(fewest) else ""
    share = "" if row["share"] is None else f"{row['share']:.0%}"
    peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:,} MB"
    cells = (row["classes"], row["side"], row["detector"], f"{row['announced']:,}", f"{row['passes']:,}", times)
    return f"| {' | '.join(map(str, (*cells, round(row['seconds']), share, peak)))} |"


def announced() -> str:
    """What every search announces for one model, by the number of classes."""
    counts = (10, 20, *CLASSES[1:])
    searching = [entry for entry in DETECTORS if not entry.builds_on]
    costs = {
        entry.name: [entry.cost((3, 32, 32), count, IMAGES // 2).passes for count in counts] for entry in searching
    }
    costs["all"] = [sum(each) for each in zip(*costs.values(), strict=True)]
    lines = [f"| | {' | '.join(f'{count:,} classes' for count in counts)} | 100 / 10 | 1,000 / 10 |"]
    lines.append("|---|" + "---:|" * (len(counts) + 2))
    for name, passes in costs.items():
        cells = [f"{count:,.0f}" for count in passes] + [f"{count / passes[0]:.1f}" for count in passes[-2:]]
        lines.append(f"| {name if name == 'all' else f'`{name}`'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def others() -> str:
    """What Neural Cleanse alone takes in other libraries at their defaults, unless it stops early."""
    lines = ["| | " + " | ".join(f"{count} classes ({TRAINING[count][0]})" for count in CLASSES) + " |"]
    lines.append("|---|" + "---:|" * len(CLASSES))
    for name, epochs, _ in OTHERS:
        cells = [f"{epochs * TRAINING[count][1] * count / 1e6:,.0f} M" for count in CLASSES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Epochs times training images times classes: " + "; ".join(source for _, _, source in OTHERS) + "."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    names = [entry.name for entry in DETECTORS if not entry.builds_on]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--classes", default=",".join(map(str, CLASSES)), help="separated by commas")
    parser.add_argument("--sides", default=",".join(map(str, SIDES)), help="of the images in px, separated by commas")
    parser.add_argument("--detectors", default=",".join(names), help="separated by commas (default: all that search)")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the steps (default: 1)")
    parser.add_argument("--out", type=Path, help="keep the rows in this JSON file, and add to those that are there")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    wanted = [
        (name, int(classes), int(side))
        for side in given.sides.split(",")
        for classes in given.classes.split(",")
        for name in given.detectors.split(",")
    ]
    if given.one:
        print(json.dumps(measured(*wanted[0], given.effort)))
        return 0
    rows: list[Row] = json.loads(given.out.read_text()) if given.out and given.out.exists() else []
    for name, classes, side in wanted:
        parts = ["--classes", str(classes), "--sides", str(side), "--detectors", name, "--effort", str(given.effort)]
        command = [sys.executable, "-m", "benchmarks.speed", "--one", *parts]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr, flush=True)
        if given.out:
            given.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(announced(), table(rows), others(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What an audit costs beside its searches: seconds, bytes and memory over the number of classes.

``python -m benchmarks.bookkeeping`` runs the whole gate on a one-layer network with K classes, with detections and answers to
properties that are made up at once and as large as real ones. What is left is the bookkeeping: items, reports, fingerprints,
records, pages. It also is the plugin that does so inside of pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backdoor_audit.detectors import ByMargin, BySize, Detection, Detector, Row
from backdoor_audit.properties import Property, PropertyOutcome, unanswered
from backdoor_audit.run.properties import PropertySearches
from backdoor_audit.run.searches import Searches

_FACTORY = """
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear({inputs}, {classes}))
"""
_OUT = "BOOKKEEPING_OUT"
_PER_CLASS = 2  # images: one to search, one held out
_carried = {"items": 0, "reports": 0, "bytes": 0, "most": 0}


def write_subject(folder: Path, classes: int, side: int) -> None:
    """A module ``toy_subject``, ``model.safetensors`` and ``images.npz``: every class is a pattern of its own, and some noise."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 2, (classes, side, side, 1)) * 160 + 40
    labels = np.repeat(np.arange(classes), _PER_CLASS)
    images = patterns[labels] + draw.integers(-40, 41, (len(labels), side, side, 1))
    np.savez(folder / "images.npz", images=images.astype(np.uint8), labels=labels)
    weight = torch.from_numpy(patterns.reshape(classes, -1)).float() / 255 - 0.47
    save_file({"1.weight": weight, "1.bias": torch.zeros(classes)}, folder / "model.safetensors")
    (folder / "toy_subject.py").write_text(_FACTORY.format(inputs=side**2, classes=classes))


def measured(classes: int, side: int, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """What one run of the gate took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_subject(folder, classes, side)
        given = [
            "--audit-model=model.safetensors",
            "--audit-data=images.npz",
            "--audit-arch=toy_subject:network",
            "--audit-device=cpu",
            f"--audit-max-images={_PER_CLASS * classes}",
        ]
        paths = [name, *filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])]
        environment = {**os.environ, _OUT: str(folder / "out.json"), "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.bookkeeping", *given, *options]
        began, before = time.perf_counter(), _cpu_of_children()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        seconds, cpu = time.perf_counter() - began, _cpu_of_children() - before
        if not (folder / "out.json").exists():
            raise SystemExit(f"the run left nothing (exit code {done.returncode}):\n{done.stdout}{done.stderr}")
        told: dict[str, Any] = json.loads((folder / "out.json").read_text())
        record = folder / "backdoor-audit-report" / "audit.json"
        pages = {file.suffix: file.stat().st_size for file in record.parent.glob("audit.*")}
        return {
            **told,
            "classes": classes,
            "seconds": seconds,
            "cpu": cpu,
            "exit_code": done.returncode,
            "pages": pages,
        }


def _cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pytest_configure(config: pytest.Config) -> None:
    """Put made-up answers in the place of every search."""
    if _OUT not in os.environ:
        return
    Searches._detect = _detection  # type: ignore[method-assign, assignment]
    PropertySearches._ask = _answer  # type: ignore[method-assign, assignment]


def _detection(searches: Searches, detector: Detector) -> Detection:
    """A detection in which no class stands out, as large as a real one but for its triggers."""
    sized = detector.name == "neural_cleanse"
    measured = (
        BySize(size=40.123456789, size_ratio=0.98765, success_opt=0.98765, paper_index=0.123456, steps=240)
        if sized
        else ByMargin(margin=0.123456789, natural_margin=0.1234567, excess=0.0123456, deviation=0.123456)
    )
    scores = [
        Row(
            target_class=target,
            success_val=0.123456,
            index=0.5,
            p_value=0.98765,
            image_passes=12345,
            measured=measured,
        )
        for target in detector.targets(searches.inputs.num_classes)
    ]
    return Detection(
        detector=detector.name,
        settings=repr(detector),
        scores=scores,
        triggers=(),
        means="a trigger",
        reference="" if sized else "made up",
        p_value=0.98765,
        median_size=40.0 if sized else None,
        blind_spots=detector.blind_spots,
    )


def _answer(searches: PropertySearches, wanted: Property) -> PropertyOutcome:
    """An answer to a property: it could not be asked."""
    del searches
    return unanswered(wanted, "made up")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what the reports of items carry."""
    carried = getattr(report, "backdoor_audit", None)
    if carried is not None:
        size = len(json.dumps(carried))
        _carried["reports"] += 1
        _carried["items"] += report.when == "call"
        _carried["bytes"] += size
        _carried["most"] = max(_carried["most"], size)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the figures for the process that asked for them."""
    out = os.environ.get(_OUT)
    if out and not hasattr(config, "workerinput") and _carried["reports"]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        Path(out).write_text(json.dumps({**_carried, "peak": peak}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--side", type=int, default=16, help="of the images (px)")
    parser.add_argument("options", nargs="*", help="further options of pytest, behind --")
    options = parser.parse_args()
    print("classes  items  seconds  CPU s  CPU ms/item  carried MB  largest report kB  peak MB  record MB  page MB")
    for classes in options.classes:
        row = measured(classes, options.side, tuple(options.options))
        print(
            f"{classes:7}  {row['items']:5}  {row['seconds']:7.1f}  {row['cpu']:5.1f}  "
            f"{1000 * row['cpu'] / row['items']:11.1f}  "
            f"{row['bytes'] / 1e6:10.2f}  {row['most'] / 1e3:17.1f}  {row['peak'] / 1e6:7.0f}  "
            f"{row['pages']['.json'] / 1e6:9.2f}  {row['pages'].get('.html', 0) / 1e6:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
